// Drives the published client nun-db as its users do; prints one JSON line. Arguments: addresses of nodes, in turns.
const NunDb = require('nun-db');
console.log = () => {}; // the client talks a lot
const urls = process.argv.slice(2);
const seen = [];
const pause = ms => new Promise(done => setTimeout(done, ms));
const until = async check => {
  for (let left = 600; left > 0; left--) {
    const found = await check();
    if (found) return found;
    await pause(50);
  }
  throw new Error('waited in vain');
};
const open = (db, token, user, at = 0) => new NunDb({ url: urls[at % urls.length], db, token, user });

async function values() {
  const [writer, watcher] = [open('sample', 'sample-pwd'), open('sample', 'sample-pwd')];
  await watcher.watch('k', event => seen.push([event.value, event.version]));
  const kinds = ['text', 'two words', 5, 1.5, true, [1, 'x'], { deep: { er: [null] } }];
  const back = [];
  for (const value of kinds) {
    await writer.setValue('k', value);
    back.push((await writer.get('k')).value);
  }
  await writer.increment('n', 3);
  await writer.increment('n');
  await until(() => seen.length >= kinds.length);
  const n = (await writer.get('n')).value;
  const keys = await writer.keys();
  await writer.remove('k');
  const gone = (await writer.get('k')).value;
  return { kinds, back, n, keys, gone, seen };
}

async function refusals() {
  const client = open('sample', 'client-pwd', 'client');
  await client.setValue('client-1', 'mine');
  const denied = await client.setValue('other', 1).then(() => 'kept', error => error.message);
  const owner = open('sample', 'sample-pwd');
  await owner.setValue('v', 'a');
  await owner.setValue('v', 'b');
  const stale = await owner.setValueSafe('v', 'c', '0').then(() => 'kept', error => error.message.trim());
  const wrong = await owner.useDb('sample', 'wrong').then(() => 'kept', error => error.message);
  return { denied, stale, wrong: wrong.trim(), value: (await owner.get('v')).value };
}

async function arbiter() {
  const merges = open('merged', 'arb-pwd');
  let merged = 0;
  await merges.becameArbiter(async ({ values }) => {
    merged += 1;
    const all = values.flatMap(value => (value && value.value) || []);
    return { _id: Date.now() + merged, value: [...new Set(all)].sort() };
  });
  const first = open('merged', 'arb-pwd');
  await first.setValue('set', ['start']);
  await first.setValue('set', ['start']);
  const wanted = ['start'];
  const promises = [];
  for (let index = 0; index < 60; index++) {
    wanted.push('e' + index);
    promises.push(open('merged', 'arb-pwd', undefined, index).setValueSafe('set', ['e' + index], 1));
  }
  const settled = await Promise.race([Promise.allSettled(promises), pause(20000).then(() => null)]);
  const state = await until(async () => {
    const found = await first.get('set');
    return found.version !== -2 && merged && wanted.every(one => found.value.includes(one)) && found;
  });
  return { settled: settled && settled.length, missing: wanted.filter(one => !state.value.includes(one)), merged };
}

(async () => {
  const found = { values: await values(), refusals: await refusals(), arbiter: await arbiter() };
  process.stdout.write(JSON.stringify(found) + '\n', () => process.exit(0));
})().catch(error => {
  process.stderr.write(String(error.stack) + '\n', () => process.exit(1));
});
