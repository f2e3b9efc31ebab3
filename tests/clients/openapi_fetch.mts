// What a page in TypeScript is promised: types made from our document (`openapi-typescript`), and a client of them (`openapi-fetch`).

import assert from "node:assert/strict";
import createClient from "openapi-fetch";
import type { components, operations, paths } from "./api.d.ts";

type Schemas = components["schemas"];
type StreamEvent = Schemas["StreamEvent"];
type ServerEvent = Schemas["ServerEvent"];
type ClientEvent = Schemas["ClientEvent"];

const { run, control, URL: HOUSE, API_KEY, MODEL } = await import(process.env.CHECKS!);
const client = createClient<paths>({ baseUrl: HOUSE, headers: { Authorization: `Bearer ${API_KEY}` } });

// What the calls below leave for each other.
const ids = { conversation: "", response: "", memory: "" };

function got<T>(answer: { data?: T; error?: unknown }): T {
  assert.equal(answer.error, undefined, JSON.stringify(answer.error));
  assert.notEqual(answer.data, undefined);
  return answer.data as T;
}

async function* eventsOf(stream: ReadableStream<Uint8Array>): AsyncGenerator<StreamEvent> {
  let rest = "";
  for await (const piece of stream.pipeThrough(new TextDecoderStream() as any) as unknown as AsyncIterable<string>) {
    const blocks = (rest + piece).split("\n\n");
    rest = blocks.pop()!;
    for (const block of blocks) {
      const data = block.split("\n").find((line) => line.startsWith("data: "));
      if (data) yield JSON.parse(data.slice(6));
    }
  }
}

function textOfItem(item: Schemas["Item"] | Schemas["FunctionCallItem"] | Schemas["ApprovalRequestItem"]): string {
  switch (item.type) {
    case "message":
      return item.content.map((part) => part.text ?? part.transcript ?? "").join("");
    case "function_call":
      return `${item.name}(${item.arguments})`;
    case "mcp_approval_request":
      return item.server_label;
  }
}

// Take an event of a stream apart; one that is not named here, or a field that is gone, does not compile.
function wordsOf(event: StreamEvent): string {
  switch (event.type) {
    case "response.created":
      return event.response.conversation_id ?? "";
    case "response.output_item.added":
    case "response.output_item.done":
      return textOfItem(event.item);
    case "response.content_part.added":
    case "response.content_part.done":
      return event.part.text ?? "";
    case "response.output_text.delta":
      return event.delta;
    case "response.output_text.done":
      return event.text;
    case "response.function_call_arguments.delta":
      return event.delta;
    case "response.function_call_arguments.done":
      return event.arguments;
    case "response.done":
      return event.response.receipt?.total_ms?.toFixed() ?? event.response.status;
    case "jarvis.tool":
      return event.state;
    default:
      return event satisfies never;
  }
}

// The same for the WebSocket's.
function tellOf(event: ServerEvent): string | number | null {
  switch (event.type) {
    case "session.created":
    case "session.updated":
      return event.session.audio.input.turn_detection?.type ?? null;
    case "conversation.item.added":
    case "conversation.item.done":
      return event.previous_item_id;
    case "conversation.item.deleted":
      return event.item_id;
    case "conversation.item.retrieved":
      return event.item.status;
    case "conversation.item.truncated":
      return event.audio_end_ms;
    case "conversation.item.input_audio_transcription.delta":
      return event.delta;
    case "conversation.item.input_audio_transcription.completed":
      return event.transcript;
    case "conversation.item.input_audio_transcription.failed":
      return event.error.message;
    case "input_audio_buffer.speech_started":
    case "input_audio_buffer.timeout_triggered":
      return event.audio_start_ms;
    case "input_audio_buffer.speech_stopped":
      return event.audio_end_ms;
    case "input_audio_buffer.committed":
      return event.previous_item_id;
    case "input_audio_buffer.cleared":
      return event.seq;
    case "response.output_audio.delta":
    case "response.output_audio_transcript.delta":
      return event.delta;
    case "response.output_audio_transcript.done":
      return event.transcript;
    case "response.output_audio.done":
      return event.item_id;
    case "rate_limits.updated":
      return event.rate_limits.map((limit) => limit.remaining).join();
    case "error":
      return event.error.code;
    default:
      return wordsOf(event);
  }
}

// One of each that a client may send.
const SENT: { [T in ClientEvent["type"]]: Extract<ClientEvent, { type: T }> } = {
  "session.update": { type: "session.update", session: { output_modalities: ["text"], audio: { input: { turn_detection: null } } } },
  "conversation.item.create": {
    type: "conversation.item.create",
    item: { type: "message", role: "user", content: [{ type: "input_text", text: "Hello" }] },
  },
  "conversation.item.retrieve": { type: "conversation.item.retrieve", item_id: "none" },
  "conversation.item.delete": { type: "conversation.item.delete", item_id: "none" },
  "conversation.item.truncate": { type: "conversation.item.truncate", item_id: "none", audio_end_ms: 0 },
  "input_audio_buffer.append": { type: "input_audio_buffer.append", audio: "AAAAAAAA" },
  "input_audio_buffer.clear": { type: "input_audio_buffer.clear" },
  "input_audio_buffer.commit": { type: "input_audio_buffer.commit", event_id: "the last" },
  "response.cancel": { type: "response.cancel" },
  "response.create": { type: "response.create", response: { metadata: { why: "a test" } } },
};

// One call of each operation, in an order in which each finds what it needs; one that is missing does not compile.
const OPERATIONS: { [name in keyof operations]: () => Promise<void> } = {
  async getHealth() {
    assert.equal(got(await client.GET("/health")).services.database, "healthy");
  },
  async getReadiness() {
    assert.equal(got(await client.GET("/ready")).status, "ready");
  },
  async getMetrics() {
    assert.match(got(await client.GET("/metrics", { parseAs: "text" })), /jarvis_/);
  },
  async createConversation() {
    ids.conversation = got(await client.POST("/api/chat/conversation", { body: { title: "Types" } })).id;
  },
  async sendChat() {
    const reply = got(await client.POST("/api/chat", { body: { content: "Hello", conversation_id: ids.conversation } }));
    assert.equal(reply.role, "assistant");
    ids.response = reply.id;
  },
  async streamChat() {
    const answer = await client.POST("/api/chat/stream", { body: { content: "Again" }, parseAs: "stream" });
    let said = "";
    let last: StreamEvent | undefined;
    for await (const event of eventsOf(got(answer)!)) {
      if (event.type === "response.output_text.delta") said += wordsOf(event);
      last = event;
    }
    assert.equal(last?.type, "response.done");
    if (last?.type === "response.done") assert.equal(textOfItem(last.response.output[0]!), said);
    assert.ok(said);
  },
  async getResponse() {
    const state = got(await client.GET("/api/chat/response/{id}", { params: { path: { id: ids.response } } }));
    assert.equal(state.status, "completed");
  },
  async followResponse() {
    const answer = await client.GET("/api/chat/response/{id}/events", {
      params: { path: { id: ids.response } }, parseAs: "stream",
    });
    const words: string[] = [];
    for await (const event of eventsOf(got(answer)!)) words.push(wordsOf(event));
    assert.equal(words[0], ids.conversation);
  },
  async issueTicket() {
    const made = got(await client.POST("/api/chat/response/{id}/ticket", { params: { path: { id: ids.response } } }));
    assert.ok(new Date(made.expires_at) > new Date());
  },
  async cancelResponse() {
    const state = got(await client.POST("/api/chat/response/{id}/cancel", { params: { path: { id: ids.response } } }));
    assert.equal(state.status, "completed");
  },
  async sendOutputs() {
    const call = { index: 0, id: "call_0123456789", type: "function", function: { name: "lamp", arguments: "{}" } };
    const events = [[{ tool_calls: [call] }, null], [{}, "tool_calls"]].map(([delta, finish_reason]) =>
      JSON.stringify({ choices: [{ index: 0, delta, finish_reason }] }),
    );
    await control(MODEL, { events });
    const asking = got(
      await client.POST("/api/chat", { body: { content: "Lamp on", tools: [{ type: "function", name: "lamp" }] } }),
    );
    assert.equal(asking.reason, "tool_calls");
    await control(MODEL);
    const outputs = asking.tool_calls!.map(({ call_id }) => ({ call_id, output: "done" }));
    const params = { path: { id: asking.id } };
    assert.equal(got(await client.POST("/api/chat/response/{id}/outputs", { params, body: { outputs } })).status, "completed");
  },
  async approveCalls() {
    const { error } = await client.POST("/api/chat/response/{id}/approve", {
      params: { path: { id: ids.response } }, body: { approve: true },
    });
    assert.equal(error?.code satisfies Schemas["ErrorCode"] | undefined, "conflict");
  },
  async listConversations() {
    const page = got(await client.GET("/api/chat/conversations", { params: { query: { q: "Types", limit: 5 } } }));
    assert.ok(page.conversations.some(({ id }) => id === ids.conversation));
  },
  async getHistory() {
    const page = got(await client.GET("/api/chat/history/{id}", { params: { path: { id: ids.conversation } } }));
    assert.deepEqual(page.messages.map(({ role }) => role), ["user", "assistant"]);
  },
  async changeConversation() {
    const body = { archived: true };
    const changed = await client.PATCH("/api/chat/conversation/{id}", { params: { path: { id: ids.conversation } }, body });
    assert.equal(got(changed).archived, true);
  },
  async deleteConversation() {
    const params = { path: { id: ids.conversation } };
    assert.equal(got(await client.DELETE("/api/chat/conversation/{id}", { params })).deleted, true);
    const { error } = await client.GET("/api/chat/history/{id}", { params });
    assert.equal(error?.code, "not_found");
  },
  async addMemory() {
    const { error } = await client.POST("/api/memory/add", { body: { content: "" } });
    assert.deepEqual([error?.code, error?.details?.path], ["invalid_request", "$.content"]);
    ids.memory = got(await client.POST("/api/memory/add", { body: { content: "The bike is in the shed." } })).id;
  },
  async searchMemories() {
    const found = got(await client.POST("/api/memory/search", { body: { query: "bike" } }));
    assert.ok(found.results[0]!.why.lexical >= 0);
  },
  async listMemories() {
    assert.ok(got(await client.GET("/api/memory/list")).total >= 1);
  },
  async getMemory() {
    const entry = got(await client.GET("/api/memory/entry/{id}", { params: { path: { id: ids.memory } } }));
    assert.equal(entry.content, "The bike is in the shed.");
  },
  async changeMemory() {
    const params = { path: { id: ids.memory } };
    assert.equal(got(await client.PATCH("/api/memory/entry/{id}", { params, body: { importance: 1 } })).importance, 1);
  },
  async deleteMemory() {
    assert.ok(got(await client.DELETE("/api/memory/entry/{id}", { params: { path: { id: ids.memory } } })).deleted);
  },
  async transcribe() {
    const audio_data = Buffer.alloc(32_000).toString("base64");
    const heard = got(await client.POST("/api/voice/transcribe", { body: { audio_data, format: "pcm16", sample_rate: 16_000 } }));
    assert.equal(heard.duration_ms, 1_000);
  },
  async synthesize() {
    const spoken = got(await client.POST("/api/voice/synthesize", { body: { text: "Hello.", format: "wav" } }));
    assert.equal(Buffer.from(spoken.audio_data, "base64").subarray(0, 4).toString(), "RIFF");
  },
  async streamSpeech() {
    const sound = got(await client.POST("/api/voice/speech", { body: { text: "Hello." }, parseAs: "arrayBuffer" }));
    assert.equal(Buffer.from(sound!).subarray(0, 4).toString(), "RIFF");
  },
  async listVoices() {
    assert.ok(got(await client.GET("/api/voice/voices")).every(({ gender }) => ["female", "male", "unknown"].includes(gender)));
  },
  async listLanguages() {
    assert.ok(got(await client.GET("/api/voice/languages")).length > 0);
  },
};

// Every operation of the document answers as its type says.
export async function check_operations() {
  for (const [name, call] of Object.entries(OPERATIONS)) {
    try {
      await call();
    } catch (error) {
      throw new Error(`${name}: ${(error as Error).stack}`);
    }
  }
}

// Every event that a client may send is taken, and every event that comes is taken apart.
export async function check_socket() {
  const socket = new WebSocket(`${HOUSE.replace("http", "ws")}/ws`, ["realtime", `openai-insecure-api-key.${API_KEY}`]);
  const seen = new Set<string>();
  try {
    await new Promise<void>((resolve, reject) => {
      socket.onerror = () => reject(new Error("the socket failed"));
      socket.onclose = () => reject(new Error(`the socket was closed after ${[...seen]}`));
      socket.onopen = () => {
        for (const event of Object.values(SENT)) socket.send(JSON.stringify(event));
      };
      socket.onmessage = ({ data }) => {
        const event: ServerEvent = JSON.parse(data);
        assert.notEqual(tellOf(event), undefined, data);
        seen.add(event.type);
        if (event.type === "response.done") {
          assert.equal(event.response.metadata?.["why"], "a test");
          resolve();
        }
      };
    });
  } finally {
    socket.onclose = null;
    socket.close();
  }
  for (const type of ["session.created", "session.updated", "conversation.item.added", "response.output_text.delta", "error"])
    assert.ok(seen.has(type), type);
}

run(import.meta.url);
