-- Deletes keys of a copy that was never finished: of a partition that is being written, or of one that was finished
-- before the others, and was not changed since.
--
-- KEYS: meta, then the keys to delete. ARGV: the copy's token. Returns the number of deleted keys.

local known = redis.call('HMGET', KEYS[1], 'epoch', 'copying', 'finishing', 'rev')
local mine = known[2] == ARGV[1]
if known[1] then mine = known[3] == ARGV[1] .. (known[4] or '') end
if not mine then
  return redis.error_reply('EXISTS another copy or a ledger')
end
local removed = 0
for n = 2, #KEYS do removed = removed + redis.call('UNLINK', KEYS[n]) end
return removed
