// Asks until a time of the clock, and prints how many checks were answered and why others were not; see run.
import { createRequire } from 'node:module';
import { setTimeout as sleep } from 'node:timers/promises';

const [project, address, caFile, certFile, keyFile, end] = process.argv.slice(2);
const { Client } = createRequire(`${project}/ask.js`)('consentd');
const client = new Client({ address, deadlineMs: 5_000, tls: { caFile, certFile, keyFile } });
let asked = 0;
const failures = {};
while (Date.now() < Number(end) * 1_000) {
  const verdict = await client.verdict({ user: '15550100001', business: 'acme', category: 'marketing' });
  asked += 1;
  if (verdict.reason !== 'NO_CONSENT') {
    const why = `${verdict.code}: ${verdict.cause}`;
    failures[why] = (failures[why] ?? 0) + 1;
  }
  await sleep(10);
}
client.close();
console.log(JSON.stringify({ asked, failures }));
