// Runs the checks of a client's program under Node; packages come from the environment that `make clients` made.

import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

export const URL = process.env.JARVIS_URL;
export const API_KEY = process.env.JARVIS_API_KEY;
export const MODEL = process.env.FAKE_MODEL_URL;
export const BRIDGES = process.env.FAKE_BRIDGES_URL;
export const RECORDING = fileURLToPath(new globalThis.URL("../fixtures/audio/fx16k_en_1.wav", import.meta.url));
const BRIDGES_MODE = { shape: "ndjson", transcript: "what was said" };
const LIMIT_MS = 20_000;

export const need = createRequire(`${process.env.NODE_MODULES}/`);

// Set how a fake behaves.
export async function control(url, mode = {}) {
  const answer = await fetch(`${url}/_control`, { method: "POST", body: JSON.stringify(mode) });
  if (!answer.ok) throw new Error(await answer.text());
}

// Return what a fake has seen.
export async function state(url) {
  return (await fetch(`${url}/_state`)).json();
}

// Return the body of the last request that a fake has got on a path.
export async function lastRequest(url, path) {
  return JSON.parse((await state(url)).last_bodies[path]);
}

// Run each exported function check_… of a module, with the fakes as they are at the start, and write what became of it.
export async function run(url) {
  for (const [name, check] of Object.entries(await import(url))) {
    if (!name.startsWith("check_")) continue;
    await control(MODEL);
    await control(BRIDGES, BRIDGES_MODE);
    let timer;
    const late = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error("it took too long")), LIMIT_MS)));
    let failure = "";
    try {
      await Promise.race([check(), late]);
    } catch (error) {
      failure = String(error?.stack ?? error);
    }
    clearTimeout(timer);
    process.stdout.write(`${JSON.stringify({ check: name, failure })}\n`);
  }
}
