package diskfs

import (
	"archive/tar"
	"strings"
	"testing"
	"time"
)

// Capabilities and ACLs as getxattr(2) gives them: cap_net_raw+ep, and user::rw-,
// user:5:rw-, group::r--, mask::rw-, other::r--.
const (
	capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	accessACL  = "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x06\x00\x05\x00\x00\x00" +
		"\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x06\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"
)

// TestMetadata: owners, modes, times, devices and extended attributes.
func TestMetadata(t *testing.T) {
	const (
		capText = `security.capability="\x01\x00\x00\x02\x00 \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"`
		aclText = `="\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x06\x00\x05\x00\x00\x00` +
			`\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x06\x00\xff\xff\xff\xff \x00\x04\x00\xff\xff\xff\xff"`
	)
	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	big := strings.Repeat("v", 1500)
	runCases(t, []layerCase{{
		name:   "modes",
		layers: []layer{{file("a", "").mode(0), file("b", "").mode(07777), file("c", "").mode(04755), file("d", "").mode(02755), folder("e").mode(01777), symlink("f", "x").mode(0600)}},
		want:   `a "" mode 0 | b "" mode 7777 | c "" mode 4755 | d "" mode 2755 | e/ mode 1777 | f -> x`,
	}, {
		name:   "type bits in the mode mean nothing",
		layers: []layer{{file("a", "").mode(0100644), file("b", "").mode(0040755), folder("c").mode(0100700)}},
		want:   `a "" | b "" mode 755 | c/ mode 700`,
	}, {
		name:   "owners",
		layers: []layer{{file("a", "").owner(65535, 65536), file("b", "").owner(1<<21, 1<<21+1), symlink("c", "x").owner(1<<32-2, 1<<31), folder("d").owner(100000, 7)}},
		want:   `a "" owner 65535:65536 | b "" owner 2097152:2097153 | c -> x owner 4294967294:2147483648 | d/ owner 100000:7`,
	}, {
		name:   "owner by number, not by name",
		layers: []layer{{named(file("a", "").owner(4711, 4712), "daemon", "games"), named(file("b", ""), "nobody", "x")}},
		want:   `a "" owner 4711:4712 | b ""`,
	}, {
		name:   "owner below zero",
		layers: []layer{{file("a", "")}, {rawHeader("b", '0', "00000000000\x00", func(h []byte) { copy(h[108:116], "\xff\xff\xff\xff\xff\xff\xff\xff") })}},
		want:   `a ""`, refused: "owner -1:0 out of range",
	}, {
		name:   "owner too large",
		layers: []layer{{file("a", "")}, {file("b", "").owner(1<<32-1, 0)}},
		want:   `a ""`, refused: "owner 4294967295:0 out of range",
	}, {
		name:   "times",
		layers: []layer{{file("ns", "").mtime(at("2001-02-03T04:05:06.123456789Z")), file("2038", "").mtime(at("2038-01-19T03:14:08Z")), file("2106", "").mtime(at("2106-02-07T06:28:16.5Z")), file("2400", "").mtime(at("2400-01-01T00:00:00.000000001Z")), file("epoch", "").mtime(at("1970-01-01T00:00:00Z")), folder("d").mtime(at("2200-01-01T00:00:00.25Z")), symlink("l", "x").mtime(at("2040-01-01T00:00:00.25Z"))}},
		want: `ns "" mtime 981173106.123456789 | 2038 "" mtime 2147483648.000000000 | 2106 "" mtime 4294967296.500000000 |
			2400 "" mtime 13569465600.000000001 | epoch "" mtime 0.000000000 | d/ mtime 7258118400.250000000 | l -> x mtime 2208988800.250000000`,
	}, {
		name:   "times before 1970",
		layers: []layer{{file("a", "").mtime(at("1969-12-31T23:59:59.75Z")), folder("b").mtime(at("1901-12-13T20:45:53Z")), file("c", "").mtime(at("1960-01-01T00:00:00.000000001Z"))}},
		want:   `a "" mtime -1.750000000 | b/ mtime -2147483647.000000000 | c "" mtime -315619200.000000001`,
	}, {
		name:   "times out of ext4's range",
		layers: []layer{{file("a", "").mtime(at("1800-01-01T00:00:00Z")), file("b", "").mtime(at("2500-01-01T00:00:00.5Z")), file("c", "").mtime(time.Unix(1<<33-1+1<<33-1<<31, 0)), file("d", "").mtime(time.Unix(-1<<31, 0))}},
		want:   `a "" mtime -2147483648.000000000 | b "" mtime 15032385535.999999999 | c "" mtime 15032385535.000000000 | d "" mtime -2147483648.000000000`,
	}, {
		name: "devices",
		layers: []layer{{
			device("null", 'c', 1, 3).mode(0666), device("sda", 'b', 8, 0).mode(0660).owner(0, 6), device("zero", 'c', 0, 0), device("c255", 'c', 255, 255),
			device("c256", 'c', 256, 0), device("b256", 'b', 0, 256), device("max", 'b', 4095, 1<<20-1), device("p", 'p', 0, 0), device("p2", 'p', 7, 7),
		}},
		want: `null char 1:3 mode 666 | sda block 8:0 mode 660 owner 0:6 | zero char 0:0 | c255 char 255:255 |
			c256 char 256:0 | b256 block 0:256 | max block 4095:1048575 | p fifo | p2 fifo`,
	}, {
		name:   "device with a major number too large",
		layers: []layer{{file("a", "")}, {device("b", 'c', 4096, 0)}},
		want:   `a ""`, refused: "device number 4096:0 out of range",
	}, {
		name:   "device with a minor number too large",
		layers: []layer{{file("a", "")}, {device("b", 'b', 0, 1<<20)}},
		want:   `a ""`, refused: "device number 0:1048576 out of range",
	}, {
		name:   "device with a negative number",
		layers: []layer{{file("a", "")}, {rawHeader("b", '3', "00000000000\x00", func(h []byte) { copy(h[329:337], "\xff\xff\xff\xff\xff\xff\xff\xff") })}},
		want:   `a ""`, refused: "device number -1:0 out of range",
	}, {
		name: "owners in base 256",
		layers: []layer{{rawHeader("a", '0', "00000000000\x00", func(h []byte) {
			copy(h[108:116], "\x80\x00\x00\x00\xff\xff\xff\xfe")
			copy(h[116:124], "\x80\x00\x00\x00\x80\x00\x00\x01")
		})}},
		want: `a "" owner 4294967294:2147483649`,
	}, {
		name:   "capability and setuid together, on a hard link's header too",
		layers: []layer{{file("a", "x").mode(06755).owner(1, 2).xattr("security.capability", capability), link("b", "a").mode(06755).owner(1, 2).xattr("security.capability", capability)}},
		want:   `a "x" mode 6755 owner 1:2 links 2 ` + capText + ` | b "x" = a`,
	}, {
		name:   "capability",
		layers: []layer{{file("a", "x").mode(0755).xattr("security.capability", capability)}},
		want:   `a "x" mode 755 ` + capText,
	}, {
		name:   "xattrs binary, empty, with odd names",
		layers: []layer{{file("a", "").xattr("user.bin", "\x00\x01\xff\n=").xattr("user."+longName(250), "1").xattr("user.b\xc3\xa9\xff", "2"), folder("d").xattr("user.x", "y")}},
		want:   `a "" user.` + longName(250) + `="1" user.bin="\x00\x01\xff\n=" user.b` + "\xc3\xa9\xff" + `="2" | d/ user.x="y"`,
	}, {
		name:   "xattr without a value",
		layers: []layer{{file("a", "").xattr("user.empty", "").xattr("user.x", "1")}},
		want:   `a "" user.empty="" user.x="1"`,
	}, {
		name:   "xattrs kept: security and user",
		layers: []layer{{file("a", "").xattr("security.ima", "i"), file("b", "").xattr("user.mime_type", "text/plain")}},
		want:   `a "" security.ima="i" | b "" user.mime_type="text/plain"`,
	}, {
		name:   "trusted xattrs dropped",
		layers: []layer{{file("a", "").xattr("trusted.x", "1").xattr("user.x", "2")}},
		want:   `a "" user.x="2"`, warns: "trusted.*",
	}, {
		name:   "user xattrs of symlinks and devices dropped",
		layers: []layer{{symlink("a", "x").xattr("user.x", "1"), device("b", 'c', 1, 3).xattr("user.x", "1")}},
		want:   `a -> x | b char 1:3`, warns: "user.*",
	}, {
		name:   "security xattrs of symlinks kept",
		layers: []layer{{symlink("a", "x").xattr("security.test", "1"), symlink("b", strings.Repeat("x", 70)).xattr("security.test", strings.Repeat("y", 200))}},
		want:   `a -> x security.test="1" | b -> ` + strings.Repeat("x", 70) + ` security.test="` + strings.Repeat("y", 200) + `"`,
	}, {
		name:   "other xattr namespaces dropped",
		layers: []layer{{file("a", "").xattr("system.nfs4_acl", "1").xattr("btrfs.compression", "zstd")}},
		want:   `a ""`, warns: "ext4 has no place",
	}, {
		name:   "xattrs in libarchive's words",
		layers: []layer{{file("a", "").pax("LIBARCHIVE.xattr.user.x", "MQ==")}},
		want:   `a ""`, warns: "LIBARCHIVE.xattr",
	}, {
		name:   "ACLs in star's words",
		layers: []layer{{file("a", "").pax("SCHILY.acl.access", "user::rw-,group::r--,other::r--")}},
		want:   `a ""`, warns: "SCHILY.acl",
	}, {
		name:   "ACLs",
		layers: []layer{{file("a", "").mode(0664).xattr("system.posix_acl_access", accessACL), folder("d").mode(0664).xattr("system.posix_acl_default", accessACL).xattr("system.posix_acl_access", accessACL)}},
		want:   `a "" mode 664 system.posix_acl_access` + aclText + ` | d/ mode 664 system.posix_acl_access` + aclText + ` system.posix_acl_default` + aclText,
	}, {
		name:   "ACL without entries is none",
		layers: []layer{{file("a", "").xattr("system.posix_acl_access", accessACL[:4])}},
		want:   `a ""`,
	}, {
		name:   "ACL of a symlink dropped",
		layers: []layer{{symlink("a", "x").xattr("system.posix_acl_access", accessACL)}},
		want:   `a -> x`, warns: "symlinks have no ACLs",
	}, {
		name:   "ACL that is none",
		layers: []layer{{file("a", "")}, {file("b", "").xattr("system.posix_acl_access", "\x02\x00\x00\x00abc")}},
		want:   `a ""`, refused: "malformed POSIX ACL",
	}, {
		name:   "xattrs in the inode, in a block, in both, shared",
		layers: []layer{{file("in", "").xattr("user.x", strings.Repeat("v", 60)), file("block", "x").xattr("user.x", big), file("same", "").xattr("user.x", big), file("both", "").xattr("user.a", "1").xattr("user.x", big).xattr("user.y", big[:1000]).xattr("user.z", big[:1480]), folder("d").xattr("user.x", big)}},
		want: `in "" user.x="` + strings.Repeat("v", 60) + `" | block "x" user.x="` + big + `" | same "" user.x="` + big + `" | d/ user.x="` + big + `" |
			both "" user.a="1" user.x="` + big + `" user.y="` + big[:1000] + `" user.z="` + big[:1480] + `"`,
	}, {
		name: "shared xattr block given up by one, then by all",
		layers: []layer{{file("a", "").xattr("user.x", big), file("b", "").xattr("user.x", big), file("c", "").xattr("user.x", big)},
			{file("a", "").xattr("user.x", "small")}, {whiteout("b")}, {file("c", "1")}},
		want: `a "" user.x="small" | c "1"`,
	}, {
		name:   "xattr block changed within a layer",
		layers: []layer{{file("a", "").xattr("user.x", big), file("b", "").xattr("user.x", big), file("a", "").xattr("user.x", big+"w"), file("b", ""), file("c", "").xattr("user.x", big)}},
		want:   `a "" user.x="` + big + `w" | b "" | c "" user.x="` + big + `"`,
	}, {
		name:   "xattrs too large",
		layers: []layer{{file("a", "")}, {file("b", "").xattr("user.x", strings.Repeat("v", 5000))}},
		want:   `a ""`, refused: "extended attributes take",
	}, {
		name:   "xattr name too long",
		layers: []layer{{file("a", "")}, {file("b", "").xattr("user."+strings.Repeat("n", 256), "1")}},
		want:   `a ""`, refused: "no such name in ext4",
	}, {
		name:   "contiguous file",
		layers: []layer{{file("a", "123").typeflag(tar.TypeCont)}},
		want:   `a "123"`,
	}, {
		name:   "unknown types",
		layers: []layer{{file("a", "")}, {rawHeader("b", 'Z', "00000000000\x00", nil)}},
		want:   `a ""`, refused: `unknown entry type 'Z'`,
	}, {
		name:   "GNU's incremental dump",
		layers: []layer{{file("a", "")}, {rawHeader("b", 'D', "00000000000\x00", nil)}},
		want:   `a ""`, refused: `unknown entry type 'D'`,
	}, {
		name:   "GNU's continued file",
		layers: []layer{{file("a", "")}, {rawHeader("b", 'M', "00000000000\x00", nil)}},
		want:   `a ""`, refused: `unknown entry type 'M'`,
	}, {
		name:   "GNU's long names of old",
		layers: []layer{{file("a", "")}, {rawHeader("b", 'N', "00000000000\x00", nil)}},
		want:   `a ""`, refused: `unknown entry type 'N'`,
	}, {
		name:   "GNU's volume header",
		layers: []layer{{file("a", "")}, {rawHeader("b", 'V', "00000000000\x00", nil)}},
		want:   `a ""`, refused: `unknown entry type 'V'`,
	}, {
		name:   "sockets have no type",
		layers: []layer{{file("a", "")}, {rawHeader("b", 's', "00000000000\x00", nil)}},
		want:   `a ""`, refused: `unknown entry type 's'`,
	}, {
		name:   "access and change time ignored",
		layers: []layer{{file("a", "1").format(tar.FormatPAX).pax("atime", "5").pax("ctime", "6.5")}},
		want:   `a "1"`,
	}, {
		name:   "global header ignored",
		layers: []layer{{item{h: tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "0123"}}}, file("a", "1")}},
		want:   `a "1"`,
	}, {
		name:   "symlinks fast and slow",
		layers: []layer{{symlink("59", strings.Repeat("a", 59)), symlink("60", strings.Repeat("b", 60)), symlink("4000", strings.Repeat("c/", 2000)), symlink("4095", strings.Repeat("d", 4095))}},
		want:   `59 -> ` + strings.Repeat("a", 59) + ` | 60 -> ` + strings.Repeat("b", 60) + ` | 4000 -> ` + strings.Repeat("c/", 2000) + ` | 4095 -> ` + strings.Repeat("d", 4095),
	}, {
		name:   "symlink too long",
		layers: []layer{{file("a", "")}, {symlink("b", strings.Repeat("d", 4096))}},
		want:   `a ""`, refused: "symlink target of 4096 bytes",
	}, {
		name:   "symlink to nothing",
		layers: []layer{{file("a", "")}, {symlink("b", "")}},
		want:   `a ""`, refused: "symlink target of 0 bytes",
	}})
}

func named(i item, user, group string) item {
	i.h.Uname, i.h.Gname = user, group
	return i
}
