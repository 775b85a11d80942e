// Clients that live through restarts. For each line on stdin: writes until the watcher has heard of a new write and a
// conflict has been merged; then prints one JSON line. Argument: the address of a node.
const readline = require('readline');
const { NunDb, pause, until, merging, run } = require('./common.js');
const [url] = process.argv.slice(2);
process.on('unhandledRejection', () => {}); // what it writes again by itself when it is back, nobody waits for
const open = (db, token) => new NunDb({ url, db, token });

async function round(clients, state, name) {
  const heard = state.heard.length;
  let [kept, refused] = [0, 0];
  const settle = async promise => {
    const how = await Promise.race([
      promise.then(() => 'kept', () => 'refused'),
      pause(20000).then(() => 'open'),
    ]);
    if (how === 'open') throw new Error(`${name}: a promise is not settled`);
    kept += how === 'kept';
    refused += how === 'refused';
    return how;
  };
  await until(async () => {
    await settle(clients.writer.setValue('k', `${name} ${state.count++}`));
    return state.heard.slice(heard).some(value => value.startsWith(name));
  });
  const key = `set-${name}`;
  await until(async () => (await settle(clients.loser.setValueSafe(key, ['a'], 3))) === 'kept');
  await until(async () => (await settle(clients.loser.setValueSafe(key, ['b'], '0'))) === 'kept');
  const merged = await until(async () => {
    const found = await clients.loser.get(key);
    return found.version !== -2 && found.value.length === 2 && found.value;
  });
  return { name, kept, refused, merged };
}

run(async () => {
  const [writer, watcher] = [open('sample', 'sample-pwd'), open('sample', 'sample-pwd')];
  const [loser, arbiter] = [open('merged', 'arb-pwd'), open('merged', 'arb-pwd')];
  const state = { heard: [], count: 0 };
  await watcher.watch('k', event => state.heard.push(event.value));
  await watcher.get('k'); // its answer comes after the watch has begun
  await merging(arbiter);
  for await (const name of readline.createInterface({ input: process.stdin })) {
    const found = await round({ writer, watcher, loser }, state, name);
    process.stdout.write(JSON.stringify(found) + '\n');
  }
  return { heard: state.heard };
});
