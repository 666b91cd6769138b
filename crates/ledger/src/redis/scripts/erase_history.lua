-- Deletes history fields of an erased pair, if the pair's value is still the one that was read, and marks
-- the statements that the history referred to for deletion: delete_statements.lua deletes those that
-- nothing else refers to.
--
-- KEYS: meta, log, the pair's bucket, its histories, erased. ARGV: epoch, the pair's key, its value (empty:
-- it has none), the token of this erase, 1 if these are the last fields, number of digests; the digests,
-- then the fields. Returns 1, or 0 if the pair has changed.

local known = redis.call('HMGET', KEYS[1], 'epoch', 'rev')
if not known[1] then return redis.error_reply('NOEPOCH there is no ledger') end
if known[1] ~= ARGV[1] then return redis.error_reply('BADEPOCH another ledger is there') end
-- An interrupted append may have written history entries that the pair's record does not count yet.
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if last and tonumber(string.match(last[1], '^%d+')) > tonumber(known[2]) then
  return redis.error_reply('BEHIND an append was cut short')
end
-- A field that is missing because its key was lost is not erased: a repair may bring it back.
for n = 3, 4 do
  if redis.call('HEXISTS', KEYS[n], '.') == 0 then return redis.error_reply('LOST ' .. KEYS[n]) end
end
if (redis.call('HGET', KEYS[3], ARGV[2]) or '') ~= ARGV[3] then return 0 end
local fields = 7 + tonumber(ARGV[6])
for n = 7, fields - 1 do redis.call('HSET', KEYS[5], ARGV[n], ARGV[4]) end
for n = fields, #ARGV do redis.call('HDEL', KEYS[4], ARGV[n]) end
if ARGV[5] == '1' then redis.call('HDEL', KEYS[5], ARGV[2]) end
return 1
