// What the voice agents of OpenAI's Agents SDK for JavaScript are promised (`@openai/agents-realtime`).

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { API_KEY, MODEL, URL, control, need, run } from "./checks.mjs";
import {
  LONG,
  Loudspeaker,
  Microphone,
  SHORT,
  TOOL_ANSWER,
  assertInterruptedAndAnswered,
  assertToolAnswered,
  callLight,
} from "./voice.mjs";

const { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession, tool } = need("@openai/agents-realtime");

const asked = [];
const light = tool({
  name: "light",
  description: "Switch a light.",
  parameters: { type: "object", properties: { on: { type: "boolean" } }, required: ["on"], additionalProperties: false },
  execute: async ({ on }) => {
    asked.push(on);
    await control(MODEL, { answer: TOOL_ANSWER });
    return "done";
  },
});

// What a session tells, one thing after another; an error of any kind ends the check.
class Ear {
  loudspeaker = new Loudspeaker();
  #events = [];
  #wake = () => {};

  constructor(session) {
    for (const type of ["error", "audio", "audio_stopped", "audio_interrupted", "agent_end", "agent_tool_end"])
      session.on(type, (event) => {
        if (type === "audio") this.loudspeaker.play(event.data.byteLength);
        this.#events.push([type, event]);
        this.#wake();
      });
  }

  async until(wanted) {
    for (;;) {
      while (!this.#events.length) await new Promise((resolve) => (this.#wake = resolve));
      const [type, event] = this.#events.shift();
      assert.notEqual(type, "error", JSON.stringify(event));
      if (type === wanted) return;
    }
  }
}

// Connect an agent, have its microphone open, and talk.
async function converse(talk) {
  const transport = new OpenAIRealtimeWebSocket({ url: `${URL.replace("http", "ws")}/v1/realtime`, useInsecureApiKey: true });
  const session = new RealtimeSession(new RealtimeAgent({ name: "house", instructions: "Be brief.", tools: [light] }), {
    transport,
  });
  const ear = new Ear(session);
  await session.connect({ apiKey: API_KEY });
  const microphone = new Microphone((samples) => session.sendAudio(samples));
  try {
    await talk(ear, microphone);
  } finally {
    microphone.close();
    session.close();
  }
}

// What is said is answered aloud; speech interrupts the answer, and is answered in its turn.
export async function check_interruption() {
  await control(MODEL, { answer: LONG });
  await converse(async (ear, microphone) => {
    microphone.say("fx16k_fr_1");
    await ear.until("audio");
    await sleep(1_000); // a second of it is played
    await control(MODEL, { answer: SHORT });
    microphone.say("fx16k_en_1");
    await ear.until("audio_interrupted");
    await ear.until("audio");
    await ear.until("audio_stopped");
  });
  await assertInterruptedAndAnswered();
}

// A function of the agent is called for what was said, its output is answered aloud, and the session goes on.
export async function check_tool() {
  asked.length = 0;
  await callLight();
  await converse(async (ear, microphone) => {
    microphone.say("fx16k_fr_1");
    await ear.until("agent_tool_end");
    await ear.until("audio");
    await ear.until("audio_stopped");
    await ear.loudspeaker.waitQuiet();
    assert.deepEqual(asked, [true]);
    await control(MODEL, { answer: SHORT });
    microphone.say("fx16k_en_1");
    await ear.until("audio");
    await ear.until("audio_stopped");
  });
  await assertToolAnswered();
}

run(import.meta.url);
