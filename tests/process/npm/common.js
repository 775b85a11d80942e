// What the scripts share. The published client talks a lot on the console, which is for their results here.
const NunDb = require('nun-db');
console.log = () => {};
const pause = ms => new Promise(done => setTimeout(done, ms));
const until = async check => {
  for (let left = 1200; left > 0; left--) {
    const found = await check();
    if (found) return found;
    await pause(50);
  }
  throw new Error('waited in vain');
};
// Merges lists as a set; its client is an arbiter from now on.
const merging = client =>
  client.becameArbiter(async ({ values }) => {
    const all = values.flatMap(value => (value && value.value) || []);
    return { _id: Date.now(), value: [...new Set(all)].sort() };
  });
const run = main =>
  main().then(
    found => process.stdout.write(JSON.stringify(found) + '\n', () => process.exit(0)),
    error => process.stderr.write(String(error.stack) + '\n', () => process.exit(1)),
  );
module.exports = { NunDb, pause, until, merging, run };
