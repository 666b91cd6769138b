-- Reads pairs' values.
--
-- KEYS: meta, then buckets. ARGV: epoch, then for each pair the number of its bucket's key in KEYS,
-- and its key.
-- Answers {seconds, microseconds, value or false, ...}.

local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then return redis.error_reply('NOEPOCH there is no ledger') end
if epoch ~= ARGV[1] then return redis.error_reply('BADEPOCH another ledger is there') end
local time = redis.call('TIME')
local answer = {time[1], time[2]}
for n = 2, #ARGV, 2 do
  answer[#answer + 1] = redis.call('HGET', KEYS[tonumber(ARGV[n])], ARGV[n + 1])
end
return answer
