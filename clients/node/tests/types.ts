// What the package's types must take, and what they must refuse. It is compiled and not run.

import { Client, ConsentError, events, type ConsentClient, type Verdict } from 'consentd';
import { FakeClient, Sidecar } from 'consentd/testing';
import { ConsentServiceClient, type ConsentEvent } from 'consentd/proto';

export async function uses(client: ConsentClient): Promise<void> {
  const question = { user: '+44 7700 900123', business: 'acme', category: 'marketing' };
  const allowed: boolean = await client.maySend(question, { deadlineMs: 20 });
  const verdict: Verdict = await client.verdict({ ...question, form: 'TEMPLATE', minRevision: 7n });
  const event: ConsentEvent = events.optOut({ user: question.user, business: 'acme' });
  const { revision }: { revision: bigint } = await client.record(event);
  for await (const { user, verdict: one } of client.filter(['a', 'b'], question)) {
    console.log(user, one.allowed, allowed, verdict.retryTime?.getTime(), revision);
  }
  const watch = client.watch('acme', (change) => {
    if (change.type === 'changed') console.log(change.user);
    // @ts-expect-error: a reset is about nobody.
    if (change.type === 'reset') console.log(change.user);
  });
  watch.close();
  // @ts-expect-error: the category is missing.
  await client.maySend({ user: 'a', business: 'acme' });
  // @ts-expect-error: there is no such form.
  await client.maySend({ ...question, form: 'LETTER' });
  // @ts-expect-error: a promise is always true, and must be awaited.
  if (client.maySend(question)) console.log('never');
}

const clients: ConsentClient[] = [new Client({ coalescing: false }), new FakeClient()];
void clients;
void Sidecar;
void ConsentServiceClient;
void ConsentError;
