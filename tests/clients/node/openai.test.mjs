// openai-node on a running server: BASE_URL, API_KEY and MODEL say which.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { zodResponseFormat, zodFunction } from "openai/helpers/zod";
import { z } from "zod";

const model = process.env.MODEL;
const client = new OpenAI({ baseURL: `${process.env.BASE_URL}/v1`, apiKey: process.env.API_KEY, maxRetries: 0 });
const messages = [{ role: "user", content: "What is a KV cache?" }];
const greedy = { model, messages, temperature: 0 };
const Forecast = z.object({ city: z.enum(["Paris", "Tokyo", "Lima"]), sunny: z.boolean() });

async function all(stream) {
  const found = [];
  for await (const item of stream) found.push(item);
  return found;
}

async function idle() {
  for (;;) {
    const health = await (await fetch(`${process.env.BASE_URL}/readyz`)).json();
    if (health.engine.running === 0) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

test("chat is the same streamed and whole", async () => {
  const whole = await client.chat.completions.create(greedy);
  const options = { stream: true, stream_options: { include_usage: true } };
  const chunks = await all(await client.chat.completions.create({ ...greedy, ...options }));
  const last = chunks.pop();
  const text = chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join("");
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
  assert.deepEqual(last.choices, []);
  assert.equal(last.usage.completion_tokens, whole.usage.completion_tokens);
});

test("the stream helper tells the same", async () => {
  const stream = client.chat.completions.stream(greedy);
  let text = "";
  stream.on("content", (delta) => (text += delta));
  assert.equal(await stream.finalContent(), text);
  assert.ok(text);
});

test("completions, several choices, stop and logprobs", async () => {
  const options = { model, prompt: "Once upon a time", n: 2, seed: 1, max_tokens: 8, logprobs: 2 };
  const whole = await client.completions.create(options);
  const chunks = await all(await client.completions.create({ ...options, stream: true }));
  for (const { index, text, logprobs } of whole.choices) {
    const mine = chunks.map((chunk) => chunk.choices[0]).filter((choice) => choice.index === index);
    assert.equal(mine.map((choice) => choice.text).join(""), text);
    assert.equal(logprobs.tokens.length, 8);
  }
  const stopped = await client.chat.completions.create({ ...greedy, stop: ["cache"], logprobs: true, top_logprobs: 1 });
  assert.ok(!stopped.choices[0].message.content.includes("cache"));
  assert.equal(stopped.choices[0].logprobs.content[0].top_logprobs.length, 1);
});

test("errors are what they are", async () => {
  await assert.rejects(client.chat.completions.create({ ...greedy, temperature: 9 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, "temperature");
    return true;
  });
  await assert.rejects(client.chat.completions.create({ ...greedy, model: "gpt-17" }), OpenAI.NotFoundError);
  const stranger = new OpenAI({ baseURL: client.baseURL, apiKey: "sk-wrong", maxRetries: 0 });
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
});

test("models", async () => {
  assert.deepEqual((await all(await client.models.list())).map((found) => found.id), [model]);
  assert.equal((await client.models.retrieve(model)).id, model);
});

test("leaving a stream gives everything back", async () => {
  const options = { model, prompt: "Once upon a time", max_tokens: 1900, ignore_eos: true, stream: true };
  for await (const chunk of await client.completions.create(options)) {
    assert.equal(chunk.object, "text_completion");
    break;
  }
  await idle();
  const controller = new AbortController();
  const stream = await client.completions.create(options, { signal: controller.signal });
  controller.abort();
  await all(stream);
  await idle();
});

test("parse", async () => {
  const whole = await client.chat.completions.parse({ ...greedy, response_format: zodResponseFormat(Forecast, "forecast") });
  assert.ok(Forecast.safeParse(whole.choices[0].message.parsed).success);
});

test("tools", async () => {
  const tools = [zodFunction({ name: "get_forecast", parameters: Forecast })];
  const options = { ...greedy, tools, tool_choice: "required", parallel_tool_calls: false };
  const whole = await client.chat.completions.parse(options);
  const [call] = whole.choices[0].message.tool_calls;
  assert.equal(whole.choices[0].finish_reason, "tool_calls");
  assert.ok(Forecast.safeParse(call.function.parsed_arguments).success);
  const final = await client.chat.completions.stream(options).finalChatCompletion();
  assert.equal(final.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
});

test("responses", async () => {
  const options = { model, input: "What is a KV cache?", temperature: 0 };
  const whole = await client.responses.create(options);
  const stream = client.responses.stream(options);
  let text = "";
  stream.on("response.output_text.delta", (event) => (text += event.delta));
  const final = await stream.finalResponse();
  assert.equal(text, whole.output_text);
  assert.equal(final.output_text, whole.output_text);
  assert.equal(final.usage.output_tokens, whole.usage.output_tokens);
});
