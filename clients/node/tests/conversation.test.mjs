// The shared conversation of all clients: see its top.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { Client, ConsentError } from 'consentd';
import { ConsentEvent } from 'consentd/proto';
import { Sidecar } from 'consentd/testing';
import { PATIENCE_MS, sleep } from './helpers.mjs';

const file = join(process.env.CONSENTD_PACKAGE, '..', 'conversation.json');
const { serve, business, cases } = JSON.parse(readFileSync(file, 'utf8'));

const usual = new Set(['--listen', '--admin', '--unix', '--ledger']);
const args = serve.filter((word, i) => !usual.has(word) && !usual.has(serve[i - 1]));

describe('the shared conversation', () => {
  let sidecar;
  before(async () => {
    sidecar = await Sidecar.start({ args });
  });
  after(() => sidecar.close());

  for (const [round, options] of [{ coalescing: true }, { coalescing: false }].entries()) {
    cases.forEach(({ name, steps, country_is_blocked: blocked }, number) => {
      test(`${name}, ${options.coalescing ? 'with' : 'without'} coalescing`, async () => {
        const client = new Client({ address: sidecar.address, deadlineMs: PATIENCE_MS, ...options });
        try {
          const digits = String(100_000 + 1_000 * round + number);
          const user = blocked ? `1555${digits}0` : `4477009${digits}`;
          await converse(client, user, digits, steps);
        } finally {
          client.close();
        }
      });
    });
  }
});

async function converse(client, user, n, steps) {
  const named = { user, n, 'now-1h': new Date(Date.now() - 3_600_000).toISOString() };
  const fill = (value) =>
    JSON.parse(JSON.stringify(value).replace(/\{(user|n|now-1h)\}/g, (_, name) => named[name]));
  let revision = 0n;
  for (const step of steps.map(fill)) {
    if (step.record) {
      const answer = await record(client, user, step);
      revision = answer?.revision ?? revision;
    } else {
      await check(client, user, revision, step);
    }
  }
}

async function record(client, user, { record: what, user: other, at, request_id, expect = {} }) {
  const event = ConsentEvent.fromJSON({
    user_id: other ?? user,
    business_id: business,
    event_time: at === undefined ? undefined : new Date(Date.now() + at).toISOString(),
    ...what,
  });
  const options = request_id === undefined ? {} : { requestId: request_id };
  const { error, fields, ...expected } = expect;
  if (error) {
    await assert.rejects(client.record(event, options), (thrown) => {
      assert.ok(thrown instanceof ConsentError);
      assert.equal(thrown.code, error);
      for (const field of fields) {
        assert.ok(thrown.violations.some((violation) => violation.field === field), field);
      }
      return true;
    });
    return undefined;
  }
  const answer = await client.record(event, options);
  expectFields(answer, expected);
  return answer;
}

async function check(client, user, revision, { check: asked, expect }) {
  const { category, form, template, user: other, business: otherBusiness } = asked;
  const question = {
    user: other ?? user,
    business: otherBusiness ?? business,
    category,
    form,
    template,
    minRevision: template ? 0n : revision,
  };
  const end = Date.now() + PATIENCE_MS;
  let verdict = await client.verdict(question);
  while (template && !matches(verdict, expect) && Date.now() < end) {
    await sleep(10);
    verdict = await client.verdict(question);
  }
  const { cause_contains: cause = '', ...expected } = expect;
  expectFields(verdict, expected);
  assert.ok(verdict.cause.includes(cause), verdict.cause);
  if (expect.invalid) {
    await assert.rejects(client.check(question), { code: expect.code, field: expect.field });
  } else {
    assert.deepEqual({ ...(await client.check(question)), stalenessMs: 0 }, { ...verdict, stalenessMs: 0 });
  }
  assert.equal(await client.maySend(question), expect.allowed);
}

const camel = (name) => name.replace(/_(.)/g, (_, letter) => letter.toUpperCase());

const matches = (verdict, { cause_contains, ...expected }) =>
  Object.entries(expected).every(([name, value]) => verdict[camel(name)] === value);

function expectFields(actual, expected) {
  for (const [name, value] of Object.entries(expected)) {
    assert.equal(actual[camel(name)], value, name);
  }
}
