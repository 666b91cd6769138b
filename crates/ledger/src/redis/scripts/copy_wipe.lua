-- Removes keys of a copy that was never finished.
--
-- KEYS: meta, then what to remove. ARGV: the copy's token. Answers how many were removed.

local known = redis.call('HMGET', KEYS[1], 'epoch', 'copying')
if known[1] or known[2] ~= ARGV[1] then
  return redis.error_reply('EXISTS another copy or a ledger')
end
local removed = 0
for n = 2, #KEYS do removed = removed + redis.call('UNLINK', KEYS[n]) end
return removed
