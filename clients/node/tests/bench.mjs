// Measures what a check costs the process that asks.
//
// Usage: bench ADDRESS MODE CALLERS SECONDS QUESTIONS
//
// MODE is `client` (maySend), `naive` (the plain generated stub, one CanSend a check) or `stream` (one
// StreamCanSend for all callers, underneath which nothing is coalesced). CALLERS ask concurrently, each its
// next question when the one before is answered. QUESTIONS is a file that `consentd bench requests` wrote.
// After a second to warm up it measures for SECONDS, and prints one line of JSON.

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const [project, address, mode, callers, seconds, questionsFile] = process.argv.slice(2);
const require = createRequire(`${project}/bench.js`);
const { Client } = require('consentd');
const { CanSendRequest, ConsentServiceClient } = require('consentd/proto');
const grpc = require('@grpc/grpc-js');

const DEADLINE_MS = 1_000;
const WARM_UP_MS = 1_000;

const asks = { client: askByClient, naive: askByStub, stream: askByStream }[mode];
if (!asks || !questionsFile) {
  console.error('usage: bench ADDRESS client|naive|stream CALLERS SECONDS QUESTIONS');
  process.exit(2);
}

const requests = JSON.parse(readFileSync(questionsFile, 'utf8')).map(CanSendRequest.fromJSON);
const { ask, questions, close } = await asks();

let measuring = false;
let running = true;
let errors = 0;
let durations = [];

async function caller(first) {
  for (let i = first; running; i = (i + Number(callers)) % questions.length) {
    const start = performance.now();
    let decided = true;
    try {
      await ask(questions[i]);
    } catch {
      decided = false;
    }
    if (!measuring) continue;
    durations.push(performance.now() - start);
    if (!decided) errors += 1;
  }
}

const all = Array.from({ length: Number(callers) }, (_, i) => caller(i));
await new Promise((resolve) => setTimeout(resolve, WARM_UP_MS));
measuring = true;
const before = process.cpuUsage();
await new Promise((resolve) => setTimeout(resolve, Number(seconds) * 1_000));
const { user, system } = process.cpuUsage(before);
measuring = false;
running = false;
const checks = durations.length;
await Promise.all(all);
close();

const sorted = Float64Array.from(durations).sort();
const percentile = (p) => Math.round(sorted[Math.floor((sorted.length - 1) * p)] * 10_000) / 10;
console.log(
  JSON.stringify({
    checks,
    errors,
    cpu_seconds: (user + system) / 1e6,
    p50_us: percentile(0.5),
    p99_us: percentile(0.99),
  }),
);

async function askByClient() {
  const client = new Client({ address, deadlineMs: DEADLINE_MS });
  await client.ready();
  const questions = requests.map(({ userId, businessId, category }) => ({
    user: userId,
    business: businessId,
    category,
  }));
  // What maySend does, and a count of what has no answer, which maySend does not tell from a denial.
  const ask = async (question) => {
    const { allowed, code } = await client.verdict(question);
    if (code) throw new Error(code);
    return allowed;
  };
  return { questions, ask, close: () => client.close() };
}

function stubFor(address) {
  const target = address.replace(/^unix:@/, 'unix:\0');
  return new ConsentServiceClient(target, grpc.credentials.createInsecure());
}

async function askByStub() {
  const stub = stubFor(address);
  const ask = (request) =>
    new Promise((resolve, reject) => {
      const metadata = new grpc.Metadata();
      stub.canSend(request, metadata, { deadline: Date.now() + DEADLINE_MS }, (error, answer) =>
        error ? reject(error) : resolve(answer),
      );
    });
  return { questions: requests, ask, close: () => stub.close() };
}

async function askByStream() {
  const stub = stubFor(address);
  const stream = stub.streamCanSend();
  const waiting = new Map();
  let sequence = 0n;
  stream.on('data', (answer) => {
    waiting.get(answer.sequence)(answer);
    waiting.delete(answer.sequence);
  });
  stream.on('error', () => {});
  const ask = (request) =>
    new Promise((resolve) => {
      sequence += 1n;
      waiting.set(sequence, resolve);
      stream.write({ sequence, request });
    });
  const close = () => {
    stream.cancel();
    stub.close();
  };
  return { questions: requests, ask, close };
}
