"""Reads a topic over gRPC as a member of a consumer group, and acknowledges what it has printed.

    python subscribe.py 127.0.0.1:9080 shop readers
"""

import pathlib
import queue
import signal
import sys
import time

import grpc

# The messages come straight from the definitions; nothing is generated.
sys.path.append(str(pathlib.Path(__file__).parents[2] / "proto"))
millrace, services = grpc.protos_and_services("millrace/v1/subscribe.proto")

# So much may be on its way to us. What has been dealt with is granted anew.
CREDIT = millrace.Credit(records=1_000, bytes=4 << 20)


class Subscriber:
    def __init__(self, endpoint, topic, group):
        self.endpoint = endpoint
        self.subscription = millrace.Subscription(
            topics=[millrace.TopicSelection(topic=topic)], group=group, credit=CREDIT, client_id="python-example")
        self.stopping = False
        self.call = None

    def run(self):
        while not self.stopping:
            try:
                self.subscribe()
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.UNAVAILABLE:
                    # The broker is away. What was not committed comes again.
                    tell(f"disconnected: {error.details()}")
                    time.sleep(1)
                elif not self.stopping:
                    sys.exit(f"{error.code().name}: {error.details()}")

    def subscribe(self):
        """Prints records until it is stopped, or the broker is."""
        self.requests = queue.SimpleQueue()
        self.unanswered = 0
        self.send(subscription=self.subscription)
        with grpc.insecure_channel(self.endpoint) as channel:
            self.call = services.SubscriberStub(channel).Subscribe(iter(self.requests.get, None))
            try:
                for response in self.call:
                    self.hear(response)
            finally:
                self.requests.put(None)

    def stop(self, *_):
        """Deals with no more records, and leaves when what was acknowledged is committed."""
        self.stopping = True
        if self.call and not self.unanswered:
            self.call.cancel()

    def hear(self, response):
        match response.WhichOneof("response"):
            case "records" if not self.stopping:
                self.deal_with(response.records)
            case "acknowledged":
                self.unanswered -= 1
                for result in response.acknowledged.results:
                    if result.HasField("error"):
                        # Another member has the partition by now, and is given those records again.
                        tell(f"not committed: {result.error.message}")
                if self.stopping:
                    self.stop()
            case "assigned":
                for partition in response.assigned.partitions:
                    tell(f"assigned {partition.topic}/{partition.partition} at {partition.offset}")
            case "revoked":
                for partition in response.revoked.partitions:
                    tell(f"revoked {partition.topic}/{partition.partition}")

    def deal_with(self, records):
        for record in records.records:
            value = record.value.decode() if record.HasField("value") else ""
            print(records.topic, records.partition, record.offset, record.timestamp_ms, value, sep="\t")
        # Whatever is done with them must be done before they are acknowledged.
        sys.stdout.flush()
        done = millrace.PartitionOffset(
            topic=records.topic, partition=records.partition, offset=records.records[-1].offset + 1)
        self.unanswered += 1
        self.send(acknowledgement=millrace.Acknowledgement(offsets=[done]))
        self.send(credit=millrace.Credit(records=len(records.records), bytes=records.bytes))

    def send(self, **request):
        self.requests.put(millrace.SubscribeRequest(**request))


def tell(what):
    print("%", what, flush=True)


if __name__ == "__main__":
    subscriber = Subscriber(*sys.argv[1:])
    signal.signal(signal.SIGTERM, subscriber.stop)
    signal.signal(signal.SIGINT, subscriber.stop)
    subscriber.run()
