// What the package is, as it is installed.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { PATIENCE_MS, sidecarOf } from './helpers.mjs';

const run = promisify(execFile);
const source = process.env.CONSENTD_PACKAGE;
const installed = join(process.cwd(), 'node_modules/consentd');
const read = (...path) => readFileSync(join(...path), 'utf8');

test('the version is that of the server', () => {
  const [, version] = read(source, '../../Cargo.toml').match(/^version = "(.*)"$/m);
  assert.equal(JSON.parse(read(installed, 'package.json')).version, version);
});

test('its only dependencies are gRPC and protobuf', () => {
  const { dependencies, license } = JSON.parse(read(installed, 'package.json'));
  assert.deepEqual(Object.keys(dependencies).sort(), ['@bufbuild/protobuf', '@grpc/grpc-js']);
  assert.equal(license, 'Apache-2.0');
  assert.match(read(installed, 'LICENSE'), /Apache License/);
});

test('the generated code is current', async () => {
  const fresh = join(process.cwd(), 'fresh/src/gen');
  await run(join(source, 'generate'), [fresh]);
  const files = (folder) => readdirSync(folder, { recursive: true }).filter((file) => /\.ts$/.test(file)).sort();
  assert.deepEqual(files(join(source, 'src/gen')), files(fresh));
  for (const file of files(fresh)) {
    assert.equal(read(source, 'src/gen', file), read(fresh, file), `${file}: run clients/node/generate`);
  }
});

test('it is used by import and by require, which give the same class', async () => {
  const script = `
    import { createRequire } from 'node:module';
    import { Client, ConsentError, events } from 'consentd';
    import { FakeClient, Sidecar } from 'consentd/testing';
    import { ConsentServiceClient } from 'consentd/proto';
    const require = createRequire(import.meta.url);
    const same = require('consentd').Client === Client && require('consentd').ConsentError === ConsentError;
    console.log(same, typeof events.optOut, typeof FakeClient, typeof Sidecar, typeof ConsentServiceClient);`;
  writeFileSync('both.mjs', script);
  const { stdout } = await run(process.execPath, ['both.mjs']);
  assert.equal(stdout.trim(), 'true function function function function');
});

for (const type of ['module', 'commonjs']) {
  test(`its types are right for a ${type} project`, async () => {
    const tools = process.env.CONSENTD_TOOLS;
    const config = {
      compilerOptions: {
        strict: true,
        noEmit: true,
        module: 'nodenext',
        target: 'es2022',
        types: ['node'],
        typeRoots: [join(tools, 'node_modules/@types')],
        exactOptionalPropertyTypes: true,
      },
      files: [type === 'module' ? 'types.mts' : 'types.cts'],
    };
    writeFileSync(config.files[0], read('tests/types.ts'));
    writeFileSync(`tsconfig.${type}.json`, JSON.stringify(config));
    const { stdout } = await run(join(tools, 'node_modules/.bin/tsc'), ['-p', `tsconfig.${type}.json`]).catch(
      (error) => error,
    );
    assert.equal(stdout, '');
  });
}

test("the README's first example works", async (t) => {
  const [, example] = read(installed, 'README.md').match(/```js\n([^]*?)```/);
  // A machine that is busy with tests may exceed the usual deadline of a check.
  const patient = example.replace('new Client()', `new Client({ deadlineMs: ${PATIENCE_MS} })`);
  assert.notEqual(patient, example);
  writeFileSync('example.mjs', patient);
  const sidecar = await sidecarOf(t);
  const env = { ...process.env, CONSENTD_ADDR: sidecar.address };
  const { stdout } = await run(process.execPath, ['example.mjs'], { env });
  assert.equal(stdout, 'false WINDOW_CLOSED\nsend\n');
});
