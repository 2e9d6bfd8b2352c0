"""aiokafka in the story of the client tests; telling.py has the command line."""

import asyncio

import aiokafka
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

import telling


def consumer(bootstrap, **more):
    return AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=100,
        **more,
    )


async def described(bootstrap, topics=None):
    """Topics and their partitions: those that are named, or all."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    found = await admin.describe_topics(topics)
    await admin.close()
    return {t["topic"]: [p["partition"] for p in t["partitions"]] for t in found}


async def list_topics(bootstrap):
    for topic, partitions in (await described(bootstrap)).items():
        telling.topic(topic, len(partitions))


async def read(bootstrap, topic, start):
    async with consumer(bootstrap) as reader:
        partitions = [TopicPartition(topic, p) for p in (await described(bootstrap, [topic]))[topic]]
        reader.assign(partitions)
        if start == "beginning":
            await reader.seek_to_beginning(*partitions)
        elif start == "end":
            await reader.seek_to_end(*partitions)
        else:
            found = await reader.offsets_for_times({p: int(start) for p in partitions})
            for partition in partitions:
                if found[partition] is None:
                    await reader.seek_to_end(partition)
                else:
                    reader.seek(partition, found[partition].offset)
        telling.assigned({p.partition: await reader.position(p) for p in partitions})
        while True:
            tell(await reader.getmany(timeout_ms=200))


async def group(bootstrap, topic, name, mode):
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
    commits = set()
    # Stopping it leaves the group, and calls on_partitions_revoked before.
    async with member:
        while not leaving.is_set():
            records = await member.getmany(timeout_ms=200)
            tell(records)
            for partition, batch in records.items():
                positions[partition] = batch[-1].offset + 1
            if records and mode == "async":
                task = asyncio.create_task(commit(member, positions))
                commits.add(task)
                task.add_done_callback(commits.discard)
            elif records:
                await commit(member, positions)


class Listener(ConsumerRebalanceListener):
    def __init__(self, member, positions):
        self.member = member
        self.positions = positions

    def on_partitions_assigned(self, assigned):
        telling.assigned({p.partition: -1 for p in assigned})

    async def on_partitions_revoked(self, revoked):
        # What was printed so far is committed before another member gets it.
        await commit(self.member, self.positions)
        self.positions.clear()
        telling.assigned({})


async def commit(member, positions):
    """What fails comes again: the next poll rejoins."""
    offsets = dict(positions)
    if not offsets:
        return
    try:
        await member.commit(offsets)
    except KafkaError:
        return
    telling.committed({p.partition: offset for p, offset in offsets.items()})


def tell(records):
    for batch in records.values():
        for record in batch:
            telling.record(record.partition, record.offset, record.timestamp, record.key, record.value)


story = telling.run(aiokafka.__version__, list_topics, read, group)
if story:
    asyncio.run(story)
