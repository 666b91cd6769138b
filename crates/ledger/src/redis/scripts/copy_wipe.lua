-- Deletes keys of a copy that was never finished.
--
-- KEYS: meta, then the keys to delete. ARGV: the copy's token. Returns the number of deleted keys.

local known = redis.call('HMGET', KEYS[1], 'epoch', 'copying')
if known[1] or known[2] ~= ARGV[1] then
  return redis.error_reply('EXISTS another copy or a ledger')
end
local removed = 0
for n = 2, #KEYS do removed = removed + redis.call('UNLINK', KEYS[n]) end
return removed
