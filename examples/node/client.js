// A client of consentd: records, checks with a deadline, and does not send on error.
//
// Usage: client.js ADDRESS [DEADLINE_MS]; ADDRESS is HOST:PORT, unix:PATH or unix:@NAME.

import { randomUUID } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';

const CHECK_MS = 250; // A check is answered from memory: one that takes longer has gone wrong.
const RECORD_MS = 5_000; // An event is acknowledged once it is on the disk.

const protos = protoLoader.loadSync(
  ['consent/v1/consent_service.proto', 'consent/v1/record_service.proto'],
  {
    includeDirs: [fileURLToPath(new URL('../../proto', import.meta.url))],
    defaults: true,
    enums: String,
    longs: String, // Revisions are 64 bits wide, more than a number holds.
  },
);
const { ConsentService, RecordService } = grpc.loadPackageDefinition(protos).consent.v1;

// The parts of google.rpc.Status that are read here: the package with all of it takes 90 MB.
const field = (id, type, rule) => ({ id, type, rule });
const errorModel = protoLoader.fromJSON({
  nested: {
    Status: { fields: { details: field(3, 'Any', 'repeated') } },
    Any: { fields: { typeUrl: field(1, 'string'), value: field(2, 'bytes') } },
    BadRequest: { fields: { fieldViolations: field(1, 'FieldViolation', 'repeated') } },
    FieldViolation: { fields: { field: field(1, 'string'), description: field(2, 'string') } },
  },
});

// Opens the one channel of a process, for any number of clients; it connects again by itself.
function connect(address) {
  // An abstract socket's name begins with a zero byte. Before Node 22 its end was padded with more
  // of them, which makes another name: there use a path.
  const target = address.replace(/^unix:@/, 'unix:\0');
  return new grpc.Channel(target, grpc.credentials.createInsecure(), {
    'grpc.enable_http_proxy': 0, // http_proxy is not for a sidecar, but gRPC would use it.
    'grpc.max_reconnect_backoff_ms': 1_000, // Else up to two minutes after an outage.
  });
}

function client(Service, channel) {
  return new Service('', null, { channelOverride: channel });
}

// Makes a call with a deadline.
function call(service, method, request, timeoutMs) {
  return new Promise((resolve, reject) => {
    const done = (error, answer) => (error ? reject(error) : resolve(answer));
    service[method](request, { deadline: Date.now() + timeoutMs }, done);
  });
}

// A verdict says whether to send, and why.
function verdict(answer) {
  // A newer server may have reasons that this client does not know: `allowed` decides.
  return { send: answer.allowed, why: String(answer.reason).replace(/^REASON_/, '') };
}

// An error, a timeout or no sidecar means: do not send. Keep the message, and ask again.
function noAnswer(error) {
  return { send: false, why: `no answer (${grpc.status[error.code] ?? error.message})` };
}

const say = ({ send, why }) => `${send ? 'send' : 'do not send'}: ${why}`;

// To be called right before each send.
async function maySend(checks, question, timeoutMs = CHECK_MS) {
  try {
    return verdict(await call(checks, 'canSend', question, timeoutMs));
  } catch (error) {
    return noAnswer(error);
  }
}

// The same for many at once; a malformed one has its own error and does not stop the others.
async function maySendEach(checks, questions, timeoutMs = CHECK_MS) {
  try {
    const { results } = await call(checks, 'batchCanSend', { requests: questions }, timeoutMs);
    return results.map(({ response, error }) =>
      response ? verdict(response) : { send: false, why: `${error.field}: ${error.message}` },
    );
  } catch (error) {
    return questions.map(() => noAnswer(error));
  }
}

// Records an event. After an error call it again: the same request id makes that safe.
function record(records, requestId, event) {
  return call(records, 'recordEvent', { event, requestId }, RECORD_MS);
}

// What was wrong with each field, from the details of an INVALID_ARGUMENT.
function violations(error) {
  const [bytes] = error.metadata?.get('grpc-status-details-bin') ?? [];
  if (!bytes) return [];
  return errorModel.Status.deserialize(bytes)
    .details.filter(({ typeUrl }) => typeUrl.endsWith('/google.rpc.BadRequest'))
    .flatMap(({ value }) => errorModel.BadRequest.deserialize(value).fieldViolations)
    .map(({ field, description }) => `${field}: ${description}`);
}

async function converse(address, timeoutMs) {
  const userId = `example-${randomUUID()}`; // A phone number in any notation, or an id of your own.
  const pair = { userId, businessId: 'acme' };
  const question = (category, minRevision = 0) => ({
    ...pair,
    category,
    form: 'MESSAGE_FORM_TEMPLATE',
    minRevision,
  });
  const optIn = (category, statement) => ({
    ...pair,
    optIn: {
      category,
      evidence: {
        method: 'OPT_IN_METHOD_WEBSITE',
        statement,
        businessName: 'Acme',
        locale: 'en',
      },
    },
  });
  const channel = connect(address);
  const checks = client(ConsentService, channel);
  const records = client(RecordService, channel);

  const agreed = optIn('marketing', 'Yes, send me offers from Acme on WhatsApp');
  let recorded = await record(records, `signup-${userId}`, agreed);
  console.log('opt-in recorded');
  // Whichever sidecar is asked, it answers once it knows of what was just recorded.
  let offer = question('marketing', recorded.revision);
  console.log(`marketing: ${say(await maySend(checks, offer, timeoutMs))}`);

  const stop = { ...pair, inboundMessage: { text: 'STOP' } };
  recorded = await record(records, `message-${userId}`, stop);
  console.log(`STOP recorded: opted out of ${recorded.optedOutScope}`);
  offer = question('marketing', recorded.revision);
  console.log(`marketing: ${say(await maySend(checks, offer, timeoutMs))}`);

  const categories = ['marketing', 'newsletter', 'utility.order_updates'];
  const questions = categories.map((category) => question(category));
  const verdicts = await maySendEach(checks, questions, timeoutMs);
  verdicts.forEach((one, i) => console.log(`in a batch, ${categories[i]}: ${say(one)}`));

  try {
    await record(records, `second-${userId}`, optIn('newsletter', 'Yes, send me offers'));
  } catch (error) {
    console.log(`opt-in refused: ${grpc.status[error.code]}`);
    violations(error).forEach((violation) => console.log(`  ${violation}`));
  }

  const notYet = question('marketing', String(BigInt(recorded.revision) + 1_000_000n));
  console.log(`not known in time: ${say(await maySend(checks, notYet, 50))}`);
  channel.close();

  const nowhere = address.startsWith('unix:') ? `${address}.nobody` : '127.0.0.1:1';
  const nobody = connect(nowhere);
  offer = question('marketing');
  const alone = await maySend(client(ConsentService, nobody), offer, timeoutMs);
  console.log(`no sidecar: ${say(alone)}`);
  nobody.close();
}

const [address, deadline = CHECK_MS] = process.argv.slice(2);
if (!address) {
  console.error('usage: client.js ADDRESS [DEADLINE_MS]');
  process.exit(2);
}
await converse(address, Number(deadline));
