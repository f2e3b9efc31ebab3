// What a voice framework's program needs beside it under Node: a microphone in a quiet room, a loudspeaker, and what is asked
// of the server when the conversation is over. The same as voice.py.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { API_KEY, MODEL, URL, control } from "./checks.mjs";

const RATE_HZ = 24_000;
const STEP = RATE_HZ / 20;
const NOISE = 40; // highest sample of the room
export const LONG =
  "Hello to all of you. The weather is very fine today. Let us go out together for a while. " +
  "Tomorrow it will rain without a doubt. The day after it will rain too, as people say. Then the sun will be back.";
export const SHORT = "Very well.";
export const TOOL_ANSWER = "The lamp is on.";

// Return a recording's samples of 16 bits at 24,000 a second, between two of its own in a straight line.
function readRecording(name) {
  const file = readFileSync(fileURLToPath(new globalThis.URL(`../fixtures/audio/${name}.wav`, import.meta.url)));
  const data = file.subarray(file.indexOf("data") + 8);
  const samples = Array.from({ length: data.length >> 1 }, (_, place) => data.readInt16LE(2 * place));
  const ratio = file.readUInt32LE(24) / RATE_HZ;
  return Array.from({ length: Math.floor((samples.length - 1) / ratio) }, (_, place) => {
    const before = Math.floor(place * ratio);
    return Math.round(samples[before] + (samples[before + 1] - samples[before]) * (place * ratio - before));
  });
}

// Sends what is said, and the room's noise otherwise, at the pace of real time until it is closed.
export class Microphone {
  #said = [];
  #timer;

  constructor(send) {
    let due = Date.now();
    this.#timer = setInterval(() => {
      for (; due <= Date.now(); due += 50) {
        const step = Int16Array.from({ length: STEP }, () => this.#said.shift() ?? Math.round((2 * Math.random() - 1) * NOISE));
        send(step.buffer);
      }
    }, 10);
  }

  say(name) {
    this.#said.push(...readRecording(name));
  }

  close() {
    clearInterval(this.#timer);
  }
}

// Knows how long what was received is still played, at the pace of real time.
export class Loudspeaker {
  #quietAt = 0;

  play(byteLength) {
    this.#quietAt = Math.max(this.#quietAt, Date.now()) + byteLength / (2 * RATE_HZ / 1_000);
  }

  waitQuiet() {
    return sleep(Math.max(0, this.#quietAt - Date.now()));
  }
}

// Have the model call the function `light`.
export function callLight() {
  const call = { index: 0, id: "call_0123456789", type: "function", function: { name: "light", arguments: '{"on": true}' } };
  const events = [[{ tool_calls: [call] }, null], [{}, "tool_calls"]].map(([delta, finish_reason]) =>
    JSON.stringify({ model: "small-model", choices: [{ index: 0, delta, finish_reason }] }),
  );
  return control(MODEL, { events });
}

async function latestMessages() {
  const ask = async (path) => (await fetch(URL + path, { headers: { Authorization: `Bearer ${API_KEY}` } })).json();
  const { conversations } = await ask("/api/chat/conversations");
  const { messages } = await ask(`/api/chat/history/${conversations[0].id}`);
  return messages.filter((one) => one.type === "message");
}

// Of the long answer only its beginning was heard, and the short one whole.
export async function assertInterruptedAndAnswered() {
  const messages = await latestMessages();
  assert.deepEqual(messages.map((one) => one.role), ["user", "assistant", "user", "assistant"]);
  const heard = messages[1].content;
  assert.ok(heard && heard.length < LONG.length && LONG.startsWith(heard), heard);
  assert.ok(messages[1].heard_ms > 0);
  assert.equal(messages[3].content, SHORT);
}

// After the call what the model said about it was heard whole, and so was the answer to what was said next.
export async function assertToolAnswered() {
  const messages = await latestMessages();
  const said = messages.filter((one) => one.role === "assistant" && one.content).map((one) => one.content);
  assert.deepEqual(said, [TOOL_ANSWER, SHORT]);
}
