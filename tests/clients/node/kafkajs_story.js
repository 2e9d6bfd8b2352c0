// kafkajs in the story of the client tests; telling.js has the command line.

import kafkajs from "kafkajs";
import { randomUUID } from "node:crypto";
import { compressFrame, decompressFrame } from "lz4-napi";
import * as telling from "./telling.js";

const { CompressionCodecs, CompressionTypes, Kafka, logLevel } = kafkajs;

CompressionCodecs[CompressionTypes.LZ4] = () => ({
  compress: (encoder) => compressFrame(encoder.buffer),
  decompress: (buffer) => decompressFrame(buffer),
});

function connect(bootstrap) {
  return new Kafka({
    brokers: [bootstrap],
    logLevel: logLevel.ERROR,
    retry: { initialRetryTime: 100, maxRetryTime: 500, retries: 100 },
  });
}

function consumer(kafka, groupId) {
  const consumer = kafka.consumer({
    groupId,
    sessionTimeout: telling.SESSION_TIMEOUT,
    heartbeatInterval: telling.HEARTBEAT_INTERVAL,
    maxWaitTimeInMs: telling.FETCH_MAX_WAIT,
  });
  consumer.on(consumer.events.GROUP_JOIN, ({ payload }) => {
    telling.assigned(Object.values(payload.memberAssignment).flat());
  });
  consumer.on(consumer.events.REBALANCING, () => telling.assigned([]));
  return consumer;
}

function tell(partition, { offset, timestamp, key, value }) {
  telling.record(partition, offset, timestamp, key, value);
}

async function list(bootstrap) {
  const admin = connect(bootstrap).admin();
  await admin.connect();
  for (const { name, partitions } of (await admin.fetchTopicMetadata()).topics) {
    telling.topic(name, partitions.length);
  }
  await admin.disconnect();
}

// It has no consumer without a group: each reader has a group of its own.
async function read(bootstrap, topic, start) {
  const kafka = connect(bootstrap);
  const admin = kafka.admin();
  await admin.connect();
  const places =
    start === "end" ? await admin.fetchTopicOffsets(topic)
    : start === "beginning" ? []
    : await admin.fetchTopicOffsetsByTimestamp(topic, Number(start));
  await admin.disconnect();

  const reader = consumer(kafka, randomUUID());
  await reader.subscribe({ topics: [topic], fromBeginning: start === "beginning" });
  reader.run({
    autoCommit: false,
    eachMessage: async ({ partition, message }) => tell(partition, message),
  });
  for (const { partition, offset } of places) {
    reader.seek({ topic, partition, offset });
  }
}

async function group(bootstrap, topic, name, mode) {
  const member = consumer(connect(bootstrap), name);
  telling.whenInputEnds(async () => {
    await member.disconnect();
    process.exit();
  });
  await member.subscribe({ topics: [topic], fromBeginning: true });
  await member.run({
    autoCommit: false,
    eachBatch: async ({ batch: { partition, messages }, commitOffsetsIfNecessary }) => {
      for (const message of messages) {
        tell(partition, message);
      }
      const offset = (BigInt(messages.at(-1).offset) + 1n).toString();
      const commit = commitOffsetsIfNecessary({
        topics: [{ topic, partitions: [{ partition, offset }] }],
      }).then(() => telling.committed(partition, offset));
      if (mode === "sync") {
        await commit;
      } else {
        // What was not committed comes again.
        commit.catch(() => {});
      }
    },
  });
}

await telling.run("kafkajs", { list, read, group });
