"""kafka-python in the story of the client tests; telling.py has the command line."""

import kafka
from kafka import AsyncConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

import telling


def consumer(bootstrap, **more):
    return KafkaConsumer(
        bootstrap_servers=bootstrap,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        reconnect_backoff_max_ms=500,
        fetch_max_wait_ms=100,
        **more,
    )


def list_topics(bootstrap):
    reader = consumer(bootstrap)
    for topic in reader.topics():
        telling.topic(topic, len(reader.partitions_for_topic(topic)))


def read(bootstrap, topic, start):
    reader = consumer(bootstrap)
    partitions = [TopicPartition(topic, p) for p in reader.partitions_for_topic(topic)]
    reader.assign(partitions)
    if start == "beginning":
        reader.seek_to_beginning(*partitions)
    elif start == "end":
        reader.seek_to_end(*partitions)
    else:
        found = reader.offsets_for_times({p: int(start) for p in partitions})
        for partition in partitions:
            if found[partition] is None:
                reader.seek_to_end(partition)
            else:
                reader.seek(partition, found[partition].offset)
    telling.assigned({p.partition: reader.position(p) for p in partitions})
    while True:
        tell(reader.poll(timeout_ms=200))


def group(bootstrap, topic, name, mode):
    leaving = telling.input_end()
    member = consumer(
        bootstrap,
        group_id=name,
        session_timeout_ms=6000,
        heartbeat_interval_ms=500,
        max_poll_records=20,
    )
    positions = {}
    member.subscribe([topic], listener=Listener(member, positions))
    while not leaving.is_set():
        records = member.poll(timeout_ms=200)
        tell(records)
        for partition, batch in records.items():
            positions[partition] = OffsetAndMetadata(batch[-1].offset + 1)
        if records and mode == "async":
            member.commit_async(dict(positions), callback=answered)
        elif records:
            try:
                member.commit(dict(positions))
            except KafkaError:
                # The next poll rejoins; what was not committed comes again.
                continue
            answered(positions, None)
    # Calls on_partitions_revoked before it leaves.
    member.close()


class Listener(AsyncConsumerRebalanceListener):
    def __init__(self, member, positions):
        self.member = member
        self.positions = positions

    async def on_partitions_assigned(self, assigned):
        telling.assigned({p.partition: -1 for p in assigned})

    async def on_partitions_revoked(self, revoked):
        # What was printed so far is committed before another member gets it.
        if self.positions:
            try:
                await self.member.commit_async(dict(self.positions))
                answered(self.positions, None)
            except KafkaError:
                pass
        self.positions.clear()
        telling.assigned({})

    async def on_partitions_lost(self, lost):
        self.positions.clear()
        telling.assigned({})


def answered(offsets, outcome):
    if not isinstance(outcome, Exception):
        telling.committed({p.partition: place.offset for p, place in offsets.items()})


def tell(records):
    for batch in records.values():
        for record in batch:
            telling.record(record.partition, record.offset, record.timestamp, record.key, record.value)


telling.run(kafka.__version__, list_topics, read, group)
