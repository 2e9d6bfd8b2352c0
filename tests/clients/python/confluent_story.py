"""confluent-kafka in the story of the client tests; telling.py has the command line."""

import confluent_kafka
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

import telling

PATIENCE = 30.0
VERSION = f"{confluent_kafka.__version__} (librdkafka {confluent_kafka.libversion()[0]})"


def consumer(bootstrap, **more):
    settings = {
        "bootstrap.servers": bootstrap,
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "reconnect.backoff.max.ms": 500,
        "fetch.wait.max.ms": 100,
    }
    return Consumer(settings | more)


def list_topics(bootstrap):
    topics = consumer(bootstrap, **{"group.id": "none"}).list_topics(timeout=PATIENCE).topics
    for name, topic in topics.items():
        telling.topic(name, len(topic.partitions))


def read(bootstrap, topic, start):
    reader = consumer(bootstrap, **{"group.id": "none"})
    partitions = reader.list_topics(topic, timeout=PATIENCE).topics[topic].partitions
    places = [TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions]
    if start == "end":
        for place in places:
            place.offset = reader.get_watermark_offsets(place, timeout=PATIENCE)[1]
    elif start != "beginning":
        for place in places:
            place.offset = int(start)
        places = reader.offsets_for_times(places, timeout=PATIENCE)
    reader.assign(places)
    telling.assigned(offsets(places))
    while True:
        tell(reader.poll(0.2))


def group(bootstrap, topic, name, mode, *more):
    leaving = telling.input_end()
    settings = dict(setting.split("=", 1) for setting in more)
    member = consumer(bootstrap, **settings, **{"group.id": name, "on_commit": on_commit})
    held = {}

    # What a rebalance names is all, or only what is new or gone: that is the protocol's business.
    def on_assign(_, partitions):
        held.update(offsets(partitions))
        telling.assigned(held)

    def on_revoke(_, partitions):
        # What was printed so far is committed before another member gets it.
        commit(member, asynchronous=False)
        for partition in partitions:
            held.pop(partition.partition, None)
        telling.assigned(held)

    member.subscribe([topic], on_assign=on_assign, on_revoke=on_revoke)
    uncommitted = 0
    while not leaving.is_set():
        told = tell(member.poll(0.1))
        uncommitted += told
        if uncommitted == 20 or (uncommitted and not told):
            commit(member, asynchronous=mode == "async")
            uncommitted = 0
    # Calls on_revoke before it leaves.
    member.close()


def commit(member, asynchronous):
    """Commits what poll() has returned. What fails comes again."""
    try:
        places = member.commit(asynchronous=asynchronous)
    except KafkaException:
        return
    if not asynchronous:
        on_commit(None, places)


def on_commit(error, partitions):
    if error is None:
        telling.committed(offsets(p for p in partitions if p.error is None and p.offset >= 0))


def offsets(partitions):
    return {p.partition: p.offset for p in partitions}


def tell(message):
    """Prints a record; whether there was one."""
    if message is None or message.error():
        return False
    _, timestamp = message.timestamp()
    telling.record(message.partition(), message.offset(), timestamp, message.key(), message.value())
    return True


telling.run(VERSION, list_topics, read, group)
