-- Reads pairs' values.
--
-- KEYS: meta, then buckets. ARGV: epoch, then for each pair the index of its bucket in KEYS, and the pair's
-- key.
-- Returns {seconds, microseconds, value or false, ...}; -1 for a pair whose bucket has lost its sentinel
-- field, and may therefore have lost the pair.

local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then return redis.error_reply('NOEPOCH there is no ledger') end
if epoch ~= ARGV[1] then return redis.error_reply('BADEPOCH another ledger is there') end
local time = redis.call('TIME')
local answer = {time[1], time[2]}
for n = 2, #ARGV, 2 do
  local found = redis.call('HMGET', KEYS[tonumber(ARGV[n])], '.', ARGV[n + 1])
  if found[1] then answer[#answer + 1] = found[2] else answer[#answer + 1] = -1 end
end
return answer
