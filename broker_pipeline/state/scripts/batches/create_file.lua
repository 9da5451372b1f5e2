-- Records a file whose bytes are there. args: file_id, tenant, lives_s, parts, fields.
-- Returns 1, also when an earlier call did it; 0 when its parts came too late.
if redis.call('EXISTS', key('file', args.file_id)) == 1 then return 1 end
if not adopt(args.file_id, args.parts) then return 0 end
record_file(args.file_id, args.tenant, args.lives_s, args.fields)
return 1
