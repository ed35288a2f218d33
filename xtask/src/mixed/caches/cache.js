// A Node program with a bounded cache: ENTRIES values, full after SECONDS.
'use strict';

const crypto = require('node:crypto');

const [entries, seconds] = process.argv.slice(2).map(Number);
const cache = new Map();
const pause = 20;
const batch = Math.max(1, Math.round((entries * pause) / 1000 / seconds));
let next = 0;

setInterval(() => {
  for (let i = 0; i < batch; i++) {
    const body = crypto.randomBytes(200 + Math.floor(Math.random() * 1000)).toString('base64');
    cache.set(next++, { body, tags: [String(next), next] });
    if (cache.size > entries) {
      cache.delete(cache.keys().next().value);
    }
  }
  const garbage = Array.from({ length: 2000 }, (_, i) => String(i));
  garbage.sort();
}, pause);
console.log('READY');
