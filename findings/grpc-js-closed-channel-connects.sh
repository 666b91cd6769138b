#!/usr/bin/env bash
# A channel of grpc-js 1.14.7 that is closed in the turn of the event loop in which it began to connect connects
# all the same, and its connection stays open until the process ends. And getConnectivityState(true) of a channel
# that is closed makes it connect again: its state goes from SHUTDOWN back to READY.
# Why it matters: a process that makes and closes clients keeps a connection for each. The Node package closes
# its channel in a later turn, and never asks one that is closed to connect.
#
#     findings/grpc-js-closed-channel-connects.sh     # ends with 0 while grpc-js behaves so
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
echo '{ "private": true }' >package.json
npm install --silent --no-audit --no-fund --save-exact @grpc/grpc-js@1.14.7

cat >try.cjs <<'NODE'
const http2 = require('node:http2');
const { setTimeout: wait } = require('node:timers/promises');
const { Channel, connectivityState, credentials } = require('@grpc/grpc-js');

const server = http2.createServer();
let open = 0;
server.on('session', (session) => {
  open += 1;
  session.on('close', () => (open -= 1));
});

const eventually = async (condition) => {
  for (const end = Date.now() + 10_000; !condition() && Date.now() < end; ) await wait(10);
};

server.listen(0, '127.0.0.1', async () => {
  const address = `127.0.0.1:${server.address().port}`;
  const connecting = () => {
    const options = { 'grpc.use_local_subchannel_pool': 1 };
    const channel = new Channel(address, credentials.createInsecure(), options);
    channel.getConnectivityState(true);
    return channel;
  };

  connecting().close();
  await eventually(() => open > 0);
  await wait(1_000);
  const kept = open;
  console.log(`  closed in the turn in which it began to connect: ${kept} connection open a second later`);

  const channel = connecting();
  await eventually(() => channel.getConnectivityState(false) === connectivityState.READY);
  await eventually(() => open > kept);
  channel.close();
  await eventually(() => open === kept);
  const closed = open - kept;
  const before = connectivityState[channel.getConnectivityState(false)];
  console.log(`  closed once it was connected: ${closed} connections open, ${before}`);
  channel.getConnectivityState(true);
  await eventually(() => channel.getConnectivityState(false) === connectivityState.READY);
  await eventually(() => open > kept);
  const after = connectivityState[channel.getConnectivityState(false)];
  console.log(`  asked to connect after that: ${open - kept} connection open, ${after}`);
  const same = kept === 1 && closed === 0 && before === 'SHUTDOWN' && open - kept === 1 && after === 'READY';
  process.exit(same ? 0 : 1);
});
NODE

echo "node $(node --version), grpc-js $(node -p "require('@grpc/grpc-js/package.json').version")"
node try.cjs
