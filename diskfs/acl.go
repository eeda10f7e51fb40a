package diskfs

import "errors"

// POSIX ACLs have two forms. In getxattr(2) and in tars, version 2: a u32 version, then
// {tag u16, perm u16, id u32} (uapi/linux/posix_acl_xattr.h). On ext4 disks, version 1:
// a u32 version, then entries without the id where the tag has none (fs/ext4/acl.h).
const (
	aclXattrVersion = 2
	aclDiskVersion  = 1

	aclUser  = 0x02
	aclGroup = 0x08
	aclTags  = 0x01 | aclUser | 0x04 | aclGroup | 0x10 | 0x20 // user_obj … mask, other
)

// aclEmpty is an ACL without entries: to set it is to remove it.
const aclEmpty = "\x02\x00\x00\x00"

var errACL = errors.New("malformed POSIX ACL")

func aclTagKnown(tag uint16) bool { return tag&(tag-1) == 0 && tag&aclTags != 0 }

func aclToDisk(p []byte) ([]byte, error) {
	if len(p) < 4 || le.Uint32(p) != aclXattrVersion || len(p)%8 != 4 {
		return nil, errACL
	}
	out := le.AppendUint32(nil, aclDiskVersion)
	for p = p[4:]; len(p) > 0; p = p[8:] {
		tag := le.Uint16(p)
		if !aclTagKnown(tag) {
			return nil, errACL
		}
		out = append(out, p[:4]...)
		if tag == aclUser || tag == aclGroup {
			out = append(out, p[4:8]...)
		}
	}
	return out, nil
}

func aclFromDisk(p []byte) ([]byte, error) {
	if len(p) < 4 || le.Uint32(p) != aclDiskVersion {
		return nil, errACL
	}
	out := le.AppendUint32(nil, aclXattrVersion)
	for p = p[4:]; len(p) > 0; {
		if len(p) < 4 {
			return nil, errACL
		}
		tag, n := le.Uint16(p), 4
		if !aclTagKnown(tag) {
			return nil, errACL
		}
		id := []byte{0xff, 0xff, 0xff, 0xff}
		if tag == aclUser || tag == aclGroup {
			if n = 8; len(p) < n {
				return nil, errACL
			}
			id = p[4:8]
		}
		out = append(append(out, p[:4]...), id...)
		p = p[n:]
	}
	return out, nil
}
