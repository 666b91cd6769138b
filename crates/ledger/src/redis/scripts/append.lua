-- Appends a batch of changes: compares each pair's record with the one that its change started from
-- (compare-and-set), and writes the changes whose comparison holds.
--
-- The order of the writes matters, because Redis does not roll back a script that fails half-way (a key
-- of the wrong type, an ACL that forbids one command):
--   1. All records are read and compared first: a read that fails, fails before anything is written.
--   2. Statements and history entries are written before the log entry. Alone they are harmless: a
--      statement is only found by its digest, and a history entry past the length that its record states
--      is not read, and is overwritten by the pair's next change, which starts at the same index.
--   3. Then the log entry, which contains all that the pair's bucket gets. From here on the change is
--      never lost: the log is ahead of `rev`, the next append sees that and only answers BEHIND, and
--      roll_forward.lua writes the bucket from the log entry.
--   4. Then the bucket, and at the end, once, `rev` and `head`. Until then no reader sees any of it:
--      polls end at `rev`, and readers of a bucket reject values newer than `rev`.
--   5. The announcement is last, since only durable changes are announced. If the ACL forbids it,
--      the append succeeds all the same: followers find the entries by their polls.
--
-- The script never creates a key that was deleted or evicted. A bucket, its histories and the statements
-- are complete only while their sentinel field `.` exists: a change that needs one without it is rejected
-- and not written. The log is complete while its key exists, even if it is empty, and so is the fence:
-- without the fence no follower can prove that it is current, so nothing is acknowledged.
--
-- KEYS: meta, log, text, fence, erased, then the hash of pairs and the hash of histories of each bucket
-- that is needed.
-- ARGV: epoch, channel, maximum number of log entries, number of statements, number of changes, 1 if this
-- is a repair, which may write to lost buckets, PUBLISH or, in a Cluster, SPUBLISH; the digest and the text of
-- each statement; then for each
-- change: the index of its bucket's key in KEYS, the pair's key, the version that it is based on, the body
-- of the log entry (empty: only compare), the offsets in that body, the number of history entries (-1: an
-- erase; erase_history.lua deletes the pair's history), and the field and the item of each.
-- Returns {receivers of the announcement, outcome of each change..., heads}. An outcome is the revision of a
-- change that was written; 0 if the pair is unchanged and was only compared; the pair's current value on a
-- conflict, or false if it has none; -1 if its bucket was lost, -2 if its bucket's histories were lost. The
-- heads are a string of 8 bytes for each change that was written, in order: the first ones of the log's head
-- after it, which with the revision identify the change on this fork of the log.

local meta, log, text, erased = KEYS[1], KEYS[2], KEYS[3], KEYS[5]
-- Globals are looked up once, and not for each change.
local KEYS, ARGV = KEYS, ARGV
local call, pack, unpack = redis.call, struct.pack, struct.unpack
local sub, format, sha1hex, tonumber = string.sub, string.format, redis.sha1hex, tonumber

local known = call('HMGET', meta, 'epoch', 'rev', 'head')
if not known[1] then return redis.error_reply('NOEPOCH there is no ledger') end
if known[1] ~= ARGV[1] then return redis.error_reply('BADEPOCH another ledger is there') end
local rev, head = tonumber(known[2]), known[3]
local last = call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
if last and tonumber(string.match(last[1], '^%d+')) > rev then
  return redis.error_reply('BEHIND an append was cut short')
end
-- pcall: if the ACL forbids EXISTS, XADD with NOMKSTREAM below finds a missing log.
if not last and redis.pcall('EXISTS', log) == 0 then return redis.error_reply('LOST ' .. log) end
if redis.pcall('EXISTS', KEYS[4]) == 0 then return redis.error_reply('LOST ' .. KEYS[4]) end

local no_version = string.rep('\0', 16)
local function version(value)
  if value then return sub(value, 1, 16) end
  return no_version
end

-- 1. Compare.
local texts, count = tonumber(ARGV[4]), tonumber(ARGV[5])
local repairs = ARGV[6] == '1'
local at = 8 + 2 * texts
local starts, slots, values, lost, histories = {}, {}, {}, {}, {}
local fits, writes = false, false
for n = 1, count do
  starts[n] = at
  local slot = tonumber(ARGV[at])
  slots[n] = slot
  local found = call('HMGET', KEYS[slot], '.', ARGV[at + 1])
  values[n] = found[2]
  if not found[1] and not repairs then
    lost[n] = -1
  elseif ARGV[at + 5] ~= '0' then
    if histories[slot] == nil then histories[slot] = call('HEXISTS', KEYS[slot + 1], '.') end
    if histories[slot] == 0 then lost[n] = -2 end
  end
  if not lost[n] and version(values[n]) == ARGV[at + 2] then
    fits = true
    if ARGV[at + 3] ~= '' then writes = true end
  end
  at = at + 6 + 2 * math.max(0, tonumber(ARGV[at + 5]))
end

-- 2. to 4. Write.
if writes and texts > 0 and call('HEXISTS', text, '.') == 0 then
  return redis.error_reply('LOST ' .. text)
end
if writes then
  for n = 1, texts do
    local digest = ARGV[6 + 2 * n]
    call('HSETNX', text, digest, ARGV[7 + 2 * n])
    -- A new reference to a statement that an erased pair referred to clears its deletion mark.
    if call('HGET', erased, digest) then call('HDEL', erased, digest) end
  end
end
local outcomes, heads, touched, bodies = {0}, {}, {}, {}
local first, before, written = rev + 1, head, 0
for n = 1, count do
  local s = starts[n]
  local key, base, body = ARGV[s + 1], ARGV[s + 2], ARGV[s + 3]
  local bucket_key = KEYS[slots[n]]
  local value = values[n]
  -- Two callers may change the same pair in one batch: the second compares with the first's result.
  if touched[key] then value = call('HGET', bucket_key, key) end
  if lost[n] then
    outcomes[n + 1] = lost[n]
  elseif version(value) ~= base then
    outcomes[n + 1] = value
  elseif body == '' then
    outcomes[n + 1] = 0
  else
    rev = rev + 1
    local number = pack('>I8', rev)
    local history = KEYS[slots[n] + 1]
    for h = s + 6, s + 4 + 2 * tonumber(ARGV[s + 5]), 2 do
      call('HSET', history, ARGV[h], number .. ARGV[h + 1])
    end
    -- Written before the log entry, as statements are: alone it is harmless.
    local place = ARGV[s + 4]
    local _, _, from, length = unpack('>I4I1I4I4', place)
    if ARGV[s + 5] == '-1' then
      call('HSET', erased, key, '')
      -- A copy of the tombstone goes to the hash of histories, because an erased pair has no history
      -- that it could be rebuilt from if its bucket were lost.
      call('HSET', history, key,
        number .. string.rep('\0', 8) .. sub(body, from + 1, from + length))
    end
    local hash = sha1hex(head .. number .. body)
    head = pack('>I4I4I4I4I4',
      tonumber(sub(hash, 1, 8), 16), tonumber(sub(hash, 9, 16), 16),
      tonumber(sub(hash, 17, 24), 16), tonumber(sub(hash, 25, 32), 16),
      tonumber(sub(hash, 33, 40), 16))
    local id = format('%.0f-0', rev)
    if not call('XADD', log, 'NOMKSTREAM', id, 'p', place, 'b', body, 'h', head) then
      return redis.error_reply('LOST ' .. log)
    end
    local head_prefix = sub(head, 1, 8)
    call('HSET', bucket_key, key,
      number .. head_prefix .. sub(body, from + 1, from + length))
    written = written + 1
    heads[written] = head_prefix
    bodies[2 * written - 1] = pack('>I4', #body)
    bodies[2 * written] = body
    touched[key] = true
    outcomes[n + 1] = rev
  end
end

if rev < first then
  -- Nothing was written, but an unchanged pair is acknowledged. That needs a write all the same: a
  -- former primary, or one that lacks its replicas, refuses it.
  if fits then call('HINCRBY', meta, 'noop', 1) end
  outcomes[count + 2] = ''
  return outcomes
end
call('HSET', meta, 'rev', format('%.0f', rev), 'head', head)
local most = tonumber(ARGV[3])
if rev > most then
  -- Keep one entry more than configured: a page's first entry is checked against the one before it.
  call('XTRIM', log, 'MINID', format('%.0f', rev - most))
end

-- 5. Announce.
local told = redis.pcall(ARGV[7], ARGV[2],
  ARGV[1] .. pack('>I8', first) .. before .. table.concat(bodies))
outcomes[1] = type(told) == 'number' and told or -1
outcomes[count + 2] = table.concat(heads)
return outcomes
