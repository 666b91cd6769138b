-- Writes something that nobody reads, so that there is something to sync.
--
-- KEYS: meta.

if redis.call('HEXISTS', KEYS[1], 'epoch') == 0 then
  return redis.error_reply('NOEPOCH there is no ledger')
end
return redis.call('HINCRBY', KEYS[1], 'noop', 1)
