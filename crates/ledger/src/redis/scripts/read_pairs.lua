-- Reads pairs' values.
--
-- KEYS: meta, then buckets. ARGV: epoch, then for each pair the index of its bucket in KEYS, and the pair's
-- key.
-- Returns {seconds, microseconds, value or false, ...}; -1 for a pair whose bucket has lost its sentinel
-- field, and may therefore have lost the pair.

-- Globals are looked up once, and not for each pair.
local KEYS, ARGV, call, tonumber = KEYS, ARGV, redis.call, tonumber
local epoch = call('HGET', KEYS[1], 'epoch')
if not epoch then return redis.error_reply('NOEPOCH there is no ledger') end
if epoch ~= ARGV[1] then return redis.error_reply('BADEPOCH another ledger is there') end
local time = call('TIME')
local answer = {time[1], time[2]}
for n = 2, #ARGV, 2 do
  local found = call('HMGET', KEYS[tonumber(ARGV[n])], '.', ARGV[n + 1])
  -- The first pair, at n = 2, comes third: the two parts of the time are before it.
  if found[1] then answer[n / 2 + 2] = found[2] else answer[n / 2 + 2] = -1 end
end
return answer
