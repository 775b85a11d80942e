// Drives the published client as its users do; prints one JSON line. Arguments: how many writes an arbiter merges, then
// the addresses of nodes, in turns.
const { NunDb, pause, until, merging, run } = require('./common.js');
const [writes, ...urls] = process.argv.slice(2);
const seen = [];
const open = (db, token, user, at = 0) => new NunDb({ url: urls[at % urls.length], db, token, user });

async function values() {
  const [writer, watcher, other] = [0, 1, 2].map(at => open('sample', 'sample-pwd', undefined, at));
  const heard = [];
  await watcher.watch('k', event => seen.push([event.value, event.version]));
  await other.watch('k', event => heard.push([event.value, event.version]));
  // That says only that it was sent: what is asked after it is answered when it is there.
  await Promise.all([watcher.get('k'), other.get('k')]);
  const kinds = ['text', 'two words', 5, 1.5, -1, true, [1, 'x'], [], {}, { deep: { er: [null] } }, 'Zoë 🦊'];
  const falsy = [0, false, null, '']; // that client gives them back in its own wrapping
  const back = [];
  for (const value of kinds) {
    await writer.setValue('k', value);
    back.push((await writer.get('k')).value);
  }
  const wrapped = [];
  for (const value of falsy) {
    await writer.setValue('falsy', value);
    wrapped.push((await writer.get('falsy')).value);
  }
  await writer.increment('n', 3);
  await writer.increment('n');
  await until(() => seen.length >= kinds.length && heard.length >= kinds.length);
  const n = (await writer.get('n')).value;
  const keys = await writer.keys();
  await writer.remove('k');
  const gone = (await writer.get('k')).value;
  return { kinds, back, falsy, wrapped, n, keys, gone, seen, heard };
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
  await merging(open('merged', 'arb-pwd'));
  const clients = Array.from({ length: 30 }, (_, at) => open('merged', 'arb-pwd', undefined, at));
  await clients[0].setValue('set', ['start']);
  await clients[0].setValue('set', ['start']);
  const wanted = ['start'];
  const promises = [];
  for (let index = 0; index < writes; index++) {
    wanted.push('e' + index);
    promises.push(clients[index % clients.length].setValueSafe('set', ['e' + index], 1));
  }
  const settled = await Promise.race([Promise.allSettled(promises), pause(60000).then(() => [])]);
  const state = await until(async () => {
    const found = await clients[0].get('set');
    return found.version !== -2 && wanted.every(one => found.value.includes(one)) && found;
  });
  const everywhere = [];
  for (let at = 0; at < urls.length; at++) {
    const same = async () => JSON.stringify((await clients[at].get('set')).value) === JSON.stringify(state.value);
    everywhere.push(await until(same));
  }
  return {
    settled: settled.length,
    kept: settled.filter(one => one.status === 'fulfilled').length,
    missing: wanted.filter(one => !state.value.includes(one)),
    everywhere,
  };
}

run(async () => ({ values: await values(), refusals: await refusals(), arbiter: await arbiter() }));
