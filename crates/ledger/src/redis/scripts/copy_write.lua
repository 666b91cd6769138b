-- Writes fields of a copy of a ledger, if the copy with this token is still unfinished.
--
-- KEYS: meta, then hashes. ARGV: the copy's token, then for each field the index of its hash in KEYS, the
-- field, and the value. Returns the number of written fields.

local known = redis.call('HMGET', KEYS[1], 'epoch', 'copying')
if known[1] or known[2] ~= ARGV[1] then
  return redis.error_reply('EXISTS another copy or a ledger')
end
for n = 2, #ARGV, 3 do
  redis.call('HSET', KEYS[tonumber(ARGV[n])], ARGV[n + 1], ARGV[n + 2])
end
return (#ARGV - 1) / 3
