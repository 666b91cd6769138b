-- Makes a write without effect, so that WAITAOF has something to sync.
--
-- KEYS: meta. Returns the number of such writes.

if redis.call('HEXISTS', KEYS[1], 'epoch') == 0 then
  return redis.error_reply('NOEPOCH there is no ledger')
end
return redis.call('HINCRBY', KEYS[1], 'noop', 1)
