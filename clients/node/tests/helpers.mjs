// What the tests have in common.

import { spawn } from 'node:child_process';
import net from 'node:net';
import { Client } from 'consentd';
import { Sidecar } from 'consentd/testing';

/** So long may anything take on a machine that is busy with other things. */
export const PATIENCE_MS = 60_000;

/** The code where there is no sidecar: the latter if the last attempt was under way at the deadline. */
export const NO_ANSWER = /^(UNAVAILABLE|DEADLINE_EXCEEDED)$/;

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

/** A Redis server on a port of its own, which keeps nothing on the disk. */
export async function redisOf(context) {
  const port = await freePort();
  const args = ['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no'];
  const child = spawn('redis-server', args, { stdio: 'ignore' });
  const failed = new Promise((_, reject) => {
    child.on('error', () => reject(new Error('redis-server is missing: apt-get install redis-server')));
  });
  context.after(() => child.kill('SIGKILL'));
  await Promise.race([failed, eventually('redis-server', () => answers(port))]);
  failed.catch(() => {});
  return { port, stop: () => child.kill('SIGKILL') };
}

function answers(port) {
  return new Promise((resolve) => {
    const socket = net.connect(port, '127.0.0.1');
    const end = (open) => {
      socket.destroy();
      resolve(open);
    };
    socket.on('connect', () => end(true));
    socket.on('error', () => end(false));
  });
}

/** A port of this machine that nobody serves. */
export async function freePort() {
  const server = net.createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => server.on('listening', resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}
