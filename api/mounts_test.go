package api

import (
	"path"
	"testing"

	"vic/containervm"
)

func TestParseBind(t *testing.T) {
	for _, tt := range []struct {
		text   string
		volume containervm.VolumeMount
		bind   containervm.BindMount
		err    string
	}{
		{text: "/data", volume: containervm.VolumeMount{Target: "/data"}},
		{text: "v1:/data/../x/", volume: containervm.VolumeMount{Name: "v1", Target: "/x", Mode: "z"}},
		{text: "v1:/x:ro,nocopy,Z", volume: containervm.VolumeMount{Name: "v1", Target: "/x", Mode: "ro,nocopy,Z", ReadOnly: true, NoCopy: true}},
		{text: "/a/./b:/x", bind: containervm.BindMount{Source: "/a/b", Target: "/x", Create: true}},
		{text: "/a:/x:ro,cached", bind: containervm.BindMount{Source: "/a", Target: "/x", Create: true, ReadOnly: true, Mode: "ro,cached"}},
		{text: "/a:/x:rprivate,ro", bind: containervm.BindMount{Source: "/a", Target: "/x", Create: true, ReadOnly: true, Mode: "rprivate,ro"}},
		{text: "/a:/x:rprivate,private", err: "invalid volume specification: '/a:/x:rprivate,private': invalid mode: rprivate,private"},
		{text: "", err: "invalid volume specification: ''"},
		{text: ":/x", err: "invalid volume specification: ':/x'"},
		{text: "v1:", err: "invalid volume specification: 'v1:'"},
		{text: "a:b:c:d", err: "invalid volume specification: 'a:b:c:d'"},
		{text: "v1:x", err: "invalid volume specification: 'v1:x': invalid mount config for type \"volume\": invalid mount path: 'x' mount path must be absolute"},
		{text: "v1:/..", err: "invalid volume specification: 'v1:/..': invalid mount config for type \"volume\": invalid specification: destination can't be '/'"},
		{text: "v1:/x:ro,rw", err: "invalid volume specification: 'v1:/x:ro,rw': invalid mode: ro,rw"},
		{text: "v1:/x:ro,", err: "invalid volume specification: 'v1:/x:ro,': invalid mode: ro,"},
		{text: "/a:/x:nocopy", err: "invalid volume specification: '/a:/x:nocopy': invalid mode: nocopy"},
	} {
		t.Run(tt.text, func(t *testing.T) {
			p, err := (&mountTable{}).parseBind(tt.text)
			switch {
			case tt.err != "":
				if err == nil || err.Error() != tt.err {
					t.Errorf("got %v, want %q", err, tt.err)
				}
			case err != nil:
				t.Error(err)
			case p.bind != nil:
				if *p.bind != tt.bind || p.target != tt.bind.Target {
					t.Errorf("got %+v, want %+v", *p.bind, tt.bind)
				}
			default:
				v, w := p.volume, tt.volume
				if v.Name != w.Name || v.Target != w.Target || v.Mode != w.Mode || v.ReadOnly != w.ReadOnly || v.NoCopy != w.NoCopy || p.target != w.Target {
					t.Errorf("got %+v, want %+v", *v, w)
				}
			}
		})
	}
}

// Whatever a client sends is a mount at an absolute place other than the root, or an error.
func FuzzParseBind(f *testing.F) {
	for _, seed := range []string{"/data", "v1:/x:ro", "/a:/b:rw,z", "a:b:c:d", ":", "v:/..:x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := (&mountTable{}).parseBind(text)
		if err != nil {
			if statusOf(err) != 400 {
				t.Errorf("status %d: %v", statusOf(err), err)
			}
			return
		}
		if !path.IsAbs(p.target) || p.target == "/" || path.Clean(p.target) != p.target || (p.bind == nil) == (p.volume == nil) {
			t.Errorf("%q is %+v", text, p)
		}
		if p.bind != nil && !path.IsAbs(p.bind.Source) {
			t.Errorf("%q has source %q", text, p.bind.Source)
		}
	})
}
