-- Copies the log to another key without the entries that do not belong to the ledger, a part with each
-- call, and replaces the log by the complete copy.
--
-- XDEL would not do: a stream remembers the largest deleted id, and Redis 8 and Valkey refuse to set the
-- stream's last id below it (XSETID), so that the ledger's next revisions would be refused for ever. A
-- stream that never held the stray entries has no such memory. RENAME is atomic: followers see either the
-- old log or the new one.
--
-- KEYS: meta, log, copy. ARGV: epoch, the ledger's revision, the last revision to keep, maximum number of
-- entries. Returns 1 if the log was replaced, 0 if there is more to copy and the script must be called
-- again.

local meta, log, copy = KEYS[1], KEYS[2], KEYS[3]
local known = redis.call('HMGET', meta, 'epoch', 'rev')
if not known[1] then return redis.error_reply('NOEPOCH there is no ledger') end
if known[1] ~= ARGV[1] then return redis.error_reply('BADEPOCH another ledger is there') end
-- A recorder has appended meanwhile: the caller must determine again which entries to keep.
if known[2] ~= ARGV[2] then return redis.error_reply('BEHIND the ledger has moved on') end

local last = redis.call('XREVRANGE', copy, '+', '-', 'COUNT', 1)[1]
local from = last and '(' .. last[1] or '-'
local most, copied, entries = tonumber(ARGV[4]), 0, nil
repeat
  entries = redis.call('XRANGE', log, from, ARGV[3], 'COUNT', most)
  for _, entry in ipairs(entries) do
    -- The ids of the ledger's own entries are revisions and end in -0.
    if string.match(entry[1], '^%d+%-0$') then
      redis.call('XADD', copy, entry[1], unpack(entry[2]))
      copied = copied + 1
    end
    from = '(' .. entry[1]
  end
until copied > 0 or #entries < most
if #entries == most then return 0 end
if redis.call('EXISTS', copy) == 0 then
  -- An empty stream whose last id, 0-1, is below the first revision's id, 1-0.
  redis.call('XADD', copy, '0-1', 'p', '')
  redis.call('XDEL', copy, '0-1')
end
redis.call('RENAME', copy, log)
return 1
