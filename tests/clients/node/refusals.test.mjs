// openai-node and the AI SDK on a server that refuses everything: BASE_URL, API_KEY and MODEL say which; STATUS, CODE and
// AGAIN_S (Retry-After) say how.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
import OpenAI from "openai";

const { BASE_URL, API_KEY: apiKey, MODEL: model, STATUS, CODE, AGAIN_S } = process.env;
const status = Number(STATUS);
const baseURL = `${BASE_URL}/v1`;
const messages = [{ role: "user", content: "Hello" }];

for (const stream of [false, true]) {
  test(`openai, stream: ${stream}`, async () => {
    const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
    await assert.rejects(client.chat.completions.create({ model, messages, stream }), (error) => {
      assert.ok(error instanceof (status === 429 ? OpenAI.RateLimitError : OpenAI.InternalServerError));
      assert.deepEqual([error.status, error.code, error.headers.get("retry-after")], [status, CODE, AGAIN_S]);
      return true;
    });
  });
}

function isRefusal(error) {
  assert.deepEqual([error.statusCode, error.data.error.code, error.isRetryable], [status, CODE, true]);
  assert.equal(error.message, error.data.error.message);
  assert.equal(error.responseHeaders["retry-after"], AGAIN_S);
  return true;
}

const languageModel = createOpenAICompatible({ name: "tokenwire", baseURL, apiKey })(model);
const options = { model: languageModel, prompt: "Hello", maxRetries: 0 };

test("the AI SDK, whole", () => assert.rejects(generateText(options), isRefusal));

test("the AI SDK, streamed", async () => {
  const errors = [];
  await streamText({ ...options, onError: ({ error }) => errors.push(error) }).consumeStream();
  assert.equal(errors.length, 1);
  isRefusal(errors[0]);
});
