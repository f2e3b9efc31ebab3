// What OpenAI's own client for JavaScript is promised (`openai`).

import assert from "node:assert/strict";
import { createReadStream } from "node:fs";
import { need, run, URL as HOUSE, API_KEY, BRIDGES, MODEL, control, RECORDING } from "./checks.mjs";

const { default: OpenAI } = need("openai");
const client = new OpenAI({ baseURL: `${HOUSE}/v1`, apiKey: API_KEY, maxRetries: 0, timeout: 10_000 });
const SAID = "what was said";

async function raised(kind, act) {
  const error = await act().then(
    () => assert.fail(`no ${kind.name}`),
    (error) => error,
  );
  assert.ok(error instanceof kind, `${error}`);
  return error;
}

// The models are listed and found; an unknown one is NotFoundError.
export async function check_models() {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert.deepEqual(names, ["jarvis", "jarvis-hear", "jarvis-voice", "jarvis-embed", "small-model"]);
  const error = await raised(OpenAI.NotFoundError, () => client.models.retrieve("gpt-5"));
  assert.deepEqual([error.code, error.type, error.param], ["model_not_found", "invalid_request_error", "model"]);
  assert.ok(error.requestID);
}

// A wrong key is AuthenticationError; a server that is not there is APIConnectionError.
export async function check_credentials() {
  await raised(OpenAI.AuthenticationError, () => client.withOptions({ apiKey: "sk-of-nobody" }).models.list());
  await raised(OpenAI.APIConnectionError, () => client.withOptions({ baseURL: "http://127.0.0.1:1/v1" }).models.list());
}

// A recording is heard whole, with its segments, and streamed.
export async function check_transcriptions() {
  const file = () => createReadStream(RECORDING);
  const heard = await client.audio.transcriptions.create({ model: "whisper-1", file: file() });
  assert.equal(heard.text, SAID);
  const verbose = await client.audio.transcriptions.create({
    model: "whisper-1", file: file(), response_format: "verbose_json", timestamp_granularities: ["segment"],
  });
  assert.equal(verbose.segments[0].text, SAID);
  const types = [];
  for await (const event of await client.audio.transcriptions.create({ model: "whisper-1", file: file(), stream: true }))
    types.push(event.type);
  assert.deepEqual(types, ["transcript.text.delta", "transcript.text.done"]);
}

// A text is spoken; an unknown voice is BadRequestError.
export async function check_speech() {
  const spoken = await client.audio.speech.create({ model: "tts-1", voice: "nova", input: "Bonjour.", response_format: "wav" });
  const sound = Buffer.from(await spoken.arrayBuffer());
  assert.equal(sound.subarray(0, 4).toString(), "RIFF");
  assert.ok(sound.length > 1_000);
  const error = await raised(OpenAI.BadRequestError, () =>
    client.audio.speech.create({ model: "tts-1", voice: "nobody", input: "Bonjour." }),
  );
  assert.equal(error.param, "voice");
}

// Vectors come as floats and as base64, which agree.
export async function check_embeddings() {
  const packed = await client.embeddings.create({ model: "jarvis-embed", input: ["a dog", "a cat"] });
  const floats = await client.embeddings.create({ model: "jarvis-embed", input: "a cat", encoding_format: "float" });
  assert.equal(packed.data[1].embedding.length, 384);
  packed.data[1].embedding.forEach((value, place) => assert.ok(Math.abs(value - floats.data[0].embedding[place]) < 1e-6));
}

// An answer comes whole and streamed, with tools; a cut stream never ends as a good one.
export async function check_chat_completions() {
  const messages = [{ role: "user", content: "one two three" }];
  const whole = await client.chat.completions.create({ model: "jarvis", messages });
  assert.equal(whole.choices[0].message.content, "You said: one two three");
  let text = "";
  for await (const chunk of await client.chat.completions.create({ model: "small-model", messages, stream: true }))
    text += chunk.choices[0].delta.content ?? "";
  assert.equal(text, "You said: one two three");
  const delta = { tool_calls: [{ index: 0, id: "call_0123456789", type: "function", function: { name: "light", arguments: "{}" } }] };
  const events = [[delta, null], [{}, "tool_calls"]].map(([delta, finish_reason]) =>
    JSON.stringify({ model: "small-model", choices: [{ index: 0, delta, finish_reason }] }),
  );
  await control(MODEL, { events });
  const tools = [{ type: "function", function: { name: "light", parameters: { type: "object", properties: {} } } }];
  const runner = client.chat.completions.stream({ model: "jarvis", messages, tools });
  const final = await runner.finalChatCompletion();
  assert.equal(final.choices[0].message.tool_calls[0].function.name, "light");
  await control(MODEL, { cut_after: 2 });
  const error = await raised(OpenAI.APIError, async () => {
    for await (const _ of await client.chat.completions.create({ model: "jarvis", messages, stream: true }));
  });
  assert.equal(error.code, "bad_gateway");
}

// Responses come whole, chained, streamed and deleted; functions are called without storing.
export async function check_responses() {
  const first = await client.responses.create({ model: "jarvis", input: "My name is Ann" });
  assert.equal(first.output_text, "You said: My name is Ann");
  const second = await client.responses.create({ model: "jarvis", input: "Who am I?", previous_response_id: first.id });
  assert.deepEqual(second.conversation, first.conversation);
  const stream = client.responses.stream({ model: "jarvis", input: "And now?", previous_response_id: second.id });
  const types = new Set();
  for await (const event of stream) types.add(event.type);
  assert.equal((await stream.finalResponse()).output_text, "You said: And now?");
  assert.ok(types.has("response.created") && types.has("response.completed"));
  await client.responses.delete(second.id);
  await raised(OpenAI.NotFoundError, () => client.responses.retrieve(second.id));
  const delta = { tool_calls: [{ index: 0, id: "call_0123456789", type: "function", function: { name: "light", arguments: "{}" } }] };
  await control(MODEL, {
    events: [[delta, null], [{}, "tool_calls"]].map(([delta, finish_reason]) =>
      JSON.stringify({ model: "small-model", choices: [{ index: 0, delta, finish_reason }] }),
    ),
  });
  const tools = [{ type: "function", name: "light", parameters: { type: "object", properties: {} }, strict: false }];
  const called = await client.responses.create({ model: "jarvis", input: "Light", tools, store: false });
  assert.equal(called.output[0].name, "light");
}

run(import.meta.url);
