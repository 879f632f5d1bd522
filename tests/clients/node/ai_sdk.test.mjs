// Vercel's AI SDK, by its OpenAI-compatible provider, on a running server: BASE_URL, API_KEY and MODEL say which.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({
  name: "tokenwire",
  baseURL: `${process.env.BASE_URL}/v1`,
  apiKey: process.env.API_KEY,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = provider(process.env.MODEL);
const greedy = { model, prompt: "What is a KV cache?", temperature: 0, maxRetries: 0 };
const Forecast = z.object({ city: z.enum(["Paris", "Tokyo", "Lima"]), sunny: z.boolean() });

test("text is the same streamed and whole", async () => {
  const whole = await generateText(greedy);
  const stream = streamText(greedy);
  let text = "";
  for await (const delta of stream.textStream) text += delta;
  assert.equal(text, whole.text);
  assert.ok(text);
  assert.equal(await stream.finishReason, "stop");
  assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);
  assert.ok(whole.usage.outputTokens > 0);
});

test("completions", async () => {
  const { text } = await generateText({
    ...greedy,
    model: provider.completionModel(process.env.MODEL),
    prompt: "Once upon a time",
    maxOutputTokens: 8,
  });
  assert.ok(text);
});

test("an object of a schema", async () => {
  const { object } = await generateObject({ ...greedy, schema: Forecast });
  assert.ok(Forecast.safeParse(object).success);
});

test("tools, streamed and whole", async () => {
  const tools = { get_forecast: tool({ description: "The weather.", inputSchema: Forecast }) };
  const options = { ...greedy, tools, toolChoice: { type: "tool", toolName: "get_forecast" } };
  const whole = await generateText(options);
  assert.equal(whole.toolCalls[0].toolName, "get_forecast");
  assert.ok(Forecast.safeParse(whole.toolCalls[0].input).success);
  const stream = streamText(options);
  const calls = await stream.toolCalls;
  assert.deepEqual(calls[0].input, whole.toolCalls[0].input);
});

test("errors are what they are", async () => {
  const is = (status, code, param) => (error) => {
    assert.deepEqual([error.statusCode, error.data.error.code, error.data.error.param], [status, code, param]);
    assert.equal(error.message, error.data.error.message);
    return true;
  };
  const hot = { ...greedy, temperature: 9 };
  await assert.rejects(generateText(hot), is(400, "invalid_request_error", "temperature"));
  const none = { ...greedy, model: provider("gpt-17") };
  await assert.rejects(generateText(none), is(404, "model_not_found", "model"));
  const stranger = createOpenAICompatible({ name: "tokenwire", baseURL: `${process.env.BASE_URL}/v1`, apiKey: "sk-wrong" });
  const unknown = { ...greedy, model: stranger(process.env.MODEL) };
  await assert.rejects(generateText(unknown), is(401, "invalid_api_key", null));
});

test("leaving a stream", async () => {
  const controller = new AbortController();
  const options = { ...greedy, prompt: "Tell me a story.", abortSignal: controller.signal };
  const parts = [];
  for await (const part of streamText(options).fullStream) {
    parts.push(part.type);
    if (part.type === "text-delta") controller.abort();
  }
  assert.equal(parts.at(-1), "abort");
});
