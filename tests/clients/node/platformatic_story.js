// @platformatic/kafka in the story of the client tests; telling.js has the command line.

import { Admin, Consumer, stringDeserializers } from "@platformatic/kafka";
import { randomUUID } from "node:crypto";
import { finished } from "node:stream/promises";
import { setTimeout } from "node:timers/promises";
import * as telling from "./telling.js";

// A member eager to give up everything would have no moment to commit what it has read before others get it.
const COOPERATIVE = {
  protocols: [{ name: "cooperative-sticky", version: 1 }],
  sessionTimeout: telling.SESSION_TIMEOUT,
  heartbeatInterval: telling.HEARTBEAT_INTERVAL,
};

function consumer(bootstrap, groupId, protocol = COOPERATIVE) {
  const consumer = new Consumer({
    clientId: "clients",
    bootstrapBrokers: [bootstrap],
    groupId,
    ...protocol,
    deserializers: stringDeserializers,
    autocommit: false,
    maxWaitTime: telling.FETCH_MAX_WAIT,
  });
  tellAssigned(consumer);
  return consumer;
}

// No event tells of every change.
async function tellAssigned(consumer) {
  const held = () => (consumer.assignments ?? []).flatMap((assignment) => assignment.partitions);
  let told = [];
  const tellHeld = () => telling.assigned((told = held()));
  consumer.on("consumer:group:join", tellHeld);
  while (!consumer.closed) {
    if (held().join() !== told.join()) {
      tellHeld();
    }
    await setTimeout(10);
  }
}

function tell({ partition, offset, timestamp, key, value }) {
  telling.record(partition, offset, timestamp, key, value);
}

async function list(bootstrap) {
  const admin = new Admin({ clientId: "clients", bootstrapBrokers: [bootstrap] });
  const topics = await admin.listTopics();
  for (const [name, topic] of (await admin.metadata({ topics })).topics) {
    telling.topic(name, topic.partitionsCount);
  }
  await admin.close();
}

// It has no consumer without a group: each reader has a group of its own.
async function read(bootstrap, topic, start) {
  const reader = consumer(bootstrap, randomUUID());
  const timestamp = { beginning: -2n, end: -1n }[start] ?? BigInt(start);
  const found = (await reader.listOffsets({ topics: [topic], timestamp })).get(topic);
  const ends = (await reader.listOffsets({ topics: [topic], timestamp: -1n })).get(topic);
  const offsets = found.map((offset, partition) => ({
    topic,
    partition,
    // Where there is no record of that time or later, it is told -1.
    offset: offset < 0n ? ends[partition] : offset,
  }));
  for await (const message of await reader.consume({ topics: [topic], mode: "manual", offsets })) {
    tell(message);
  }
}

// It commits in the background only: it has nowhere to wait for a commit but in a stream that reads on.
async function group(bootstrap, topic, name, mode, ...settings) {
  const protocol = settings.includes("group.protocol=consumer") ? { groupProtocol: "consumer" } : COOPERATIVE;
  let member, leaving;
  telling.whenInputEnds(async () => {
    leaving = true;
    await member?.close(true);
    process.exit();
  });
  while (!leaving) {
    member = consumer(bootstrap, name, protocol);
    try {
      const stream = await member.consume({ topics: [topic], mode: "committed", fallbackMode: "earliest" });
      // As an event, before there can be a rebalance in between: what waits in a stream is delivered after it all the same.
      stream.on("data", (message) => {
        tell(message);
        message
          .commit()
          .then(() => telling.committed(message.partition, message.offset + 1n))
          // What was not committed comes again.
          .catch(() => {});
      });
      await finished(stream);
    } catch (error) {
      // The broker is away: its streams end with the error, and one begins anew.
      console.error(error.message);
      await member.close(true).catch(() => {});
      await setTimeout(telling.FETCH_MAX_WAIT);
    }
  }
}

await telling.run("@platformatic/kafka", { list, read, group });
