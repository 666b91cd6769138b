-- The fenced poll: reads the log after a revision, and proves where the log ends.
--
-- The script writes nothing, but without the flag `no-writes` Redis treats it as a write: replicas refuse
-- it, and so does a primary with fewer replicas than min-replicas-to-write. Only the fence is declared in
-- KEYS, because Redis demands the write permission for every declared key, and a sidecar has it for the
-- fence alone.
--
-- KEYS: fence. ARGV: meta, log, revision, maximum number of entries, maximum number of bytes.
-- Returns {epoch, rev, head, secret, buckets, accepted, seconds, microseconds, lost, partitions, spread,
-- partition, ledger, id, body, head, ...}: `lost` is the key of the fence or of the log if it is missing, otherwise empty; the first entry is the
-- one at the given revision, if the log still has it.

local meta, log = ARGV[1], ARGV[2]
local known = redis.call('HMGET', meta, 'epoch', 'rev', 'head', 'secret', 'buckets', 'accepted',
  'partitions', 'spread', 'partition', 'ledger')
if not known[1] then return redis.error_reply('NOEPOCH there is no ledger') end
local time = redis.call('TIME')
-- pcall: if the ACL forbids EXISTS, missing keys are not reported.
local lost, there = '', redis.pcall('EXISTS', KEYS[1], log)
if type(there) == 'number' and there < 2 then
  lost = redis.call('EXISTS', log) == 0 and log or KEYS[1]
end
local answer =
  {known[1], known[2], known[3], known[4], known[5], known[6], time[1], time[2], lost,
  -- Ledgers from before there were partitions have one.
  known[7] or '1', known[8] or '1', known[9] or '0', known[10] or ''}
local rev, from = tonumber(known[2]), tonumber(ARGV[3])
if from >= rev then return answer end
-- The entry at `from` comes in addition to the requested ones.
local entries, bytes = tonumber(ARGV[4]) + 1, tonumber(ARGV[5])
local to = string.format('%.0f', rev)
while from <= rev and entries > 0 and bytes > 0 do
  local page = redis.call('XRANGE', log, string.format('%.0f', from), to,
    'COUNT', math.min(256, entries))
  for _, entry in ipairs(page) do
    local body = entry[2][4]
    answer[#answer + 1] = entry[1]
    answer[#answer + 1] = body
    answer[#answer + 1] = entry[2][6]
    entries, bytes = entries - 1, bytes - #body
    if bytes <= 0 then break end
  end
  if #page == 0 then break end
  from = tonumber(string.match(page[#page][1], '^%d+')) + 1
end
return answer
