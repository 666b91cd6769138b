// What the tests have in common.

import { Client } from 'consentd';
import { Sidecar } from 'consentd/testing';

/** So long may anything take on a machine that is busy with other things. */
export const PATIENCE_MS = 60_000;

export const BUSINESS = 'acme';

let users = 0;
/** A user that no other test asks about. */
export const newUser = () => `4477${String(++users).padStart(8, '0')}`;

export const marketing = (user) => ({ user, business: BUSINESS, category: 'marketing' });

/** A client that waits long, unless the test says otherwise; closed at the end of the test. */
export function clientOf(context, address, options = {}) {
  const client = new Client({ address, deadlineMs: PATIENCE_MS, ...options });
  context.after(() => client.close());
  return client;
}

export async function sidecarOf(context, ...args) {
  const sidecar = await Sidecar.start({ args });
  context.after(() => sidecar.close());
  return sidecar;
}

export const evidence = {
  method: 'WEBSITE',
  statement: 'Yes, send me offers from Acme on WhatsApp',
  businessName: 'Acme',
  locale: 'en',
};

export const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Waits until something is so. */
export async function eventually(what, condition) {
  for (const end = Date.now() + PATIENCE_MS; Date.now() < end; await sleep(5)) {
    if (await condition()) return;
  }
  throw new Error(`not in time: ${what}`);
}
