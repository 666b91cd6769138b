// A server of the contract whose answers a test decides and delays.

import grpc from '@grpc/grpc-js';
import { ConsentServiceService, CanSendResponse, Reason } from 'consentd/proto';

export const ALLOWED = { response: CanSendResponse.create({ allowed: true, reason: Reason.REASON_OPTED_IN }) };
export const DENIED = { response: CanSendResponse.create({ reason: Reason.REASON_NO_CONSENT }) };

/** Allows users whose id ends in an even digit. */
export const byUser = ({ userId }) => (Number(userId.at(-1)) % 2 === 0 ? ALLOWED : DENIED);

export async function fakeServer(context, decide = byUser) {
  const server = new grpc.Server();
  const calls = [];
  const waiting = [];
  let held = false;

  // Each call is kept, and answered at once unless answers are held.
  const take = (kind, call, requests, answer) => {
    const one = { kind, size: requests.length, requests, cancelled: false };
    call.on('cancelled', () => {
      one.cancelled = true;
      wake();
    });
    calls.push(one);
    wake();
    if (held) held.push(answer);
    else answer();
  };
  const wake = () => waiting.splice(0).forEach((resolve) => resolve());

  server.addService(ConsentServiceService, {
    canSend: (call, done) =>
      take('CanSend', call, [call.request], () => {
        const { response, status } = decide(call.request);
        done(status ?? null, response);
      }),
    batchCanSend: (call, done) =>
      take('BatchCanSend', call, call.request.requests, () => {
        const results = call.request.requests.map((request) => decide(request));
        const status = results.find((result) => result.status)?.status;
        done(status ?? null, { results: results.filter(({ missing }) => !missing) });
      }),
  });
  const port = await new Promise((resolve, reject) => {
    const credentials = grpc.ServerCredentials.createInsecure();
    server.bindAsync('127.0.0.1:0', credentials, (error, bound) => (error ? reject(error) : resolve(bound)));
  });
  context.after(() => server.forceShutdown());
  return {
    address: `127.0.0.1:${port}`,
    calls,
    hold: () => {
      held = [];
    },
    release: () => {
      const answers = held;
      held = false;
      answers.forEach((answer) => answer());
    },
    /** Waits until the calls are as they should be. */
    until: async (condition) => {
      while (!condition(calls)) await new Promise((resolve) => waiting.push(resolve));
    },
  };
}
