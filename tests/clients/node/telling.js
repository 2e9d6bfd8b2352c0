// How the client programs of this folder are called, and what they print: one JSON object a line.
//
//   PROGRAM version
//   PROGRAM list  BOOTSTRAP
//   PROGRAM read  BOOTSTRAP TOPIC beginning|end|MILLISECONDS    until it is killed
//   PROGRAM group BOOTSTRAP TOPIC GROUP sync|async              until its standard input ends; then leaves
//
// tests/clients starts them and judges what they print.

import { readFileSync, writeSync } from "node:fs";

// A member that is lost is missed sooner than by default, and a test waits less.
export const SESSION_TIMEOUT = 6000;
export const HEARTBEAT_INTERVAL = 500;
export const FETCH_MAX_WAIT = 100;

// Calls the function of that name with the rest of the command line, or tells the version of the package.
export async function run(name, roles) {
  const [role, ...rest] = process.argv.slice(2);
  const version = () => {
    const file = new URL(`node_modules/${name}/package.json`, import.meta.url);
    console.log(JSON.parse(readFileSync(file)).version);
  };
  await { version, ...roles }[role](...rest);
}

// Calls it when the standard input ends.
export function whenInputEnds(then) {
  process.stdin.on("end", then).resume();
}

export function topic(name, partitions) {
  say({ topic: name, partitions });
}

// The partitions that the client reads from now on, without their positions.
export function assigned(partitions) {
  say({ assigned: Object.fromEntries(partitions.map((partition) => [partition, -1])) });
}

// The broker has answered the commit of an offset.
export function committed(partition, offset) {
  say({ committed: { [partition]: Number(offset) } });
}

export function record(partition, offset, timestamp, key, payload) {
  const text = (bytes) => bytes?.toString() ?? null;
  say({
    partition,
    offset: Number(offset),
    ts: Number(timestamp),
    key: text(key),
    payload: text(payload),
  });
}

function say(words) {
  // Not through process.stdout, which may keep it back.
  writeSync(1, JSON.stringify(words) + "\n");
}
