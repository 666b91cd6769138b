-- Takes away what an erased pair's history had, where the pair is still what was read, and dooms
-- the statements that it referred to: those go once nobody else refers to them (drop.lua).
--
-- KEYS: meta, log, the pair's bucket, its histories, erased. ARGV: epoch, pair's key, its value
-- (empty: there is none), a token of this erase, whether that was all (1), number of digests; the
-- digests, then the fields. Answers 1, or 0 where the pair has changed.

local known = redis.call('HMGET', KEYS[1], 'epoch', 'rev')
if not known[1] then return redis.error_reply('NOEPOCH there is no ledger') end
if known[1] ~= ARGV[1] then return redis.error_reply('BADEPOCH another ledger is there') end
-- What the log is ahead by may have entries of the history that the pair's record does not tell of.
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if last and tonumber(string.match(last[1], '^%d+')) > tonumber(known[2]) then
  return redis.error_reply('BEHIND an append was cut short')
end
-- What a key that was deleted or evicted has not, is not yet taken away: a repair may bring it back.
for n = 3, 4 do
  if redis.call('HEXISTS', KEYS[n], '.') == 0 then return redis.error_reply('LOST ' .. KEYS[n]) end
end
if (redis.call('HGET', KEYS[3], ARGV[2]) or '') ~= ARGV[3] then return 0 end
local fields = 7 + tonumber(ARGV[6])
for n = 7, fields - 1 do redis.call('HSET', KEYS[5], ARGV[n], ARGV[4]) end
for n = fields, #ARGV do redis.call('HDEL', KEYS[4], ARGV[n]) end
if ARGV[5] == '1' then redis.call('HDEL', KEYS[5], ARGV[2]) end
return 1
