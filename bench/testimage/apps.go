package testimage

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/bench/layout"
)

// An App is an image of well-known software, in the shape of the official image of that name, made from Debian
// packages: its entry point, its ports and volumes, how it is stopped, whom it runs as.
type App struct {
	Name     string
	packages []string
	script   string // run after the installation
	config   v1.Config
}

// appFiles has a root for each app: what its image has beyond the packages. Scripts may be executed.
//
//go:embed apps
var appFiles embed.FS

// Apps are all there are.
func Apps() []App {
	const debianPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	ports := func(list ...string) map[string]struct{} { return set(list) }
	return []App{
		{
			Name: "nginx", packages: []string{"nginx"},
			script: "ln -sf /dev/stdout /var/log/nginx/access.log\nln -sf /dev/stderr /var/log/nginx/error.log",
			config: v1.Config{
				Env: []string{"PATH=" + debianPath}, Entrypoint: []string{"/docker-entrypoint.sh"}, Cmd: []string{"nginx", "-g", "daemon off;"},
				ExposedPorts: ports("80/tcp"), StopSignal: "SIGQUIT",
			},
		}, {
			Name: "redis", packages: []string{"redis-server"},
			config: v1.Config{
				Env: []string{"PATH=" + debianPath}, Entrypoint: []string{"/docker-entrypoint.sh"}, Cmd: []string{"redis-server", "--protected-mode", "no"},
				ExposedPorts: ports("6379/tcp"), Volumes: set([]string{"/data"}), WorkingDir: "/data",
				Healthcheck: &v1.HealthConfig{Test: []string{"CMD", "redis-cli", "ping"}, Interval: 10 * time.Second},
			},
		}, {
			Name: "postgres", packages: []string{"postgresql-15"},
			// Expressions compiled by LLVM gain little and its library is half the image.
			script: `rm -rf /usr/lib/x86_64-linux-gnu/libLLVM* /usr/lib/x86_64-linux-gnu/libz3* /usr/lib/llvm-14 /usr/share/i18n /usr/lib/postgresql/15/lib/llvmjit* /usr/lib/postgresql/15/lib/bitcode /var/lib/postgresql/15 /etc/postgresql/15
sed -i "s/^#listen_addresses = 'localhost'/listen_addresses = '*'/" /usr/share/postgresql/15/postgresql.conf.sample
mkdir -p /docker-entrypoint-initdb.d`,
			config: v1.Config{
				Env:        []string{"PATH=" + debianPath + ":/usr/lib/postgresql/15/bin", "LANG=C.UTF-8", "PG_MAJOR=15", "PGDATA=/var/lib/postgresql/data"},
				Entrypoint: []string{"/docker-entrypoint.sh"}, Cmd: []string{"postgres"},
				ExposedPorts: ports("5432/tcp"), Volumes: set([]string{"/var/lib/postgresql/data"}), StopSignal: "SIGINT",
				Healthcheck: &v1.HealthConfig{Test: []string{"CMD-SHELL", "pg_isready -U postgres"}, Interval: 10 * time.Second},
			},
		}, {
			Name: "node", packages: []string{"nodejs"},
			script: "useradd --uid 1000 --create-home --shell /bin/bash node",
			config: v1.Config{
				Env: []string{"PATH=" + debianPath, "NODE_ENV=production", "PORT=3000"}, Entrypoint: []string{"/docker-entrypoint.sh"}, Cmd: []string{"server.js"},
				ExposedPorts: ports("3000/tcp"), WorkingDir: "/usr/src/app", User: "node",
			},
		}, {
			Name: "python", packages: []string{"gunicorn", "python3-flask"},
			script: "mkdir /data\nchown 10001:10001 /data",
			config: v1.Config{
				Env: []string{"PATH=" + debianPath, "LANG=C.UTF-8", "PYTHONUNBUFFERED=1"}, Cmd: []string{"gunicorn", "--bind", "0.0.0.0:8000", "--workers", "2", "--timeout", "600", "app:app"},
				ExposedPorts: ports("8000/tcp"), WorkingDir: "/app", User: "10001:10001", Volumes: set([]string{"/data"}),
				Healthcheck: &v1.HealthConfig{Test: []string{"CMD", "python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 8000))"}, Interval: 30 * time.Second},
			},
		}, {
			Name: "memcached", packages: []string{"memcached"},
			config: v1.Config{
				Env: []string{"PATH=" + debianPath}, Entrypoint: []string{"/docker-entrypoint.sh"}, Cmd: []string{"memcached"},
				ExposedPorts: ports("11211/tcp"), User: "memcache",
			},
		}, {
			Name: "mariadb", packages: []string{"mariadb-server"},
			script: `rm -rf /var/lib/mysql
mkdir /var/lib/mysql
sed -i 's/^bind-address/#bind-address/' /etc/mysql/mariadb.conf.d/50-server.cnf`,
			config: v1.Config{
				Env: []string{"PATH=" + debianPath, "LANG=C.UTF-8"}, Entrypoint: []string{"/docker-entrypoint.sh"}, Cmd: []string{"mariadbd"},
				ExposedPorts: ports("3306/tcp"), Volumes: set([]string{"/var/lib/mysql"}),
			},
		}, {
			Name: "httpd", packages: []string{"apache2"},
			script: "ln -sf /dev/stdout /var/log/apache2/access.log\nln -sf /dev/stderr /var/log/apache2/error.log\n" +
				"echo ServerName localhost >>/etc/apache2/apache2.conf\necho 'It works!' >/var/www/html/index.html",
			config: v1.Config{
				Env: []string{"PATH=" + debianPath}, Cmd: []string{"httpd-foreground"}, ExposedPorts: ports("80/tcp"), StopSignal: "SIGWINCH",
			},
		}, {
			Name: "registry", packages: []string{"docker-registry"},
			config: v1.Config{
				Env: []string{"PATH=" + debianPath}, Entrypoint: []string{"docker-registry"}, Cmd: []string{"serve", "/etc/docker/registry/config.yml"},
				ExposedPorts: ports("5000/tcp"), Volumes: set([]string{"/var/lib/registry"}),
			},
		},
	}
}

func set(names []string) map[string]struct{} {
	m := make(map[string]struct{})
	for _, n := range names {
		m[n] = struct{}{}
	}
	return m
}

// KeepApps returns an OCI layout in cache with the images of the Apps of these names, each by its name. It is made if
// it is not there.
func KeepApps(ctx context.Context, cache string, names ...string) (string, error) {
	apps := slices.DeleteFunc(Apps(), func(a App) bool { return !slices.Contains(names, a.Name) })
	base, err := Debian(ctx, cache)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	packages := make([]Layer, len(apps))
	for i, a := range apps {
		if packages[i], err = Installed(ctx, cache, a.Name, base, a.packages, a.script); err != nil {
			return "", fmt.Errorf("install %s: %w", a.Name, err)
		}
		if err := a.sum(sum, packages[i]); err != nil {
			return "", err
		}
	}
	dir := filepath.Join(cache, fmt.Sprintf("apps-%x", sum.Sum(nil)[:6]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	tmp, err := os.MkdirTemp(cache, "apps-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp) // in vain if it has been renamed
	d, err := layout.Create(tmp)
	if err != nil {
		return "", err
	}
	bottom, err := addLayer(ctx, d, base, gzip.BestSpeed)
	if err != nil {
		return "", err
	}
	for i, a := range apps {
		if err := a.add(ctx, d, bottom, packages[i]); err != nil {
			return "", fmt.Errorf("image %s: %w", a.Name, err)
		}
	}
	return dir, os.Rename(tmp, dir)
}

// sum hashes what the image is made of.
func (a App) sum(w io.Writer, packages Layer) error {
	config, err := json.Marshal(a.config)
	if err != nil {
		return err
	}
	fmt.Fprintln(w, a.Name, packages.File, string(config))
	t := tar.NewWriter(w)
	if err := a.files().Write(t); err != nil {
		return err
	}
	return t.Close()
}

// add adds the image to a layout that has its bottom layer.
func (a App) add(ctx context.Context, d layout.Dir, bottom addedLayer, packages Layer) error {
	layers := []addedLayer{bottom}
	for _, l := range []Layer{packages, a.files()} {
		added, err := addLayer(ctx, d, l, gzip.BestSpeed)
		if err != nil {
			return err
		}
		layers = append(layers, added)
	}
	image := v1.ConfigFile{Created: v1.Time{Time: Epoch}, OS: "linux", Architecture: runtime.GOARCH, Config: a.config, RootFS: v1.RootFS{Type: "layers"}}
	var blobs []ocispec.Descriptor
	for _, l := range layers {
		blobs = append(blobs, l.blob)
		image.RootFS.DiffIDs = append(image.RootFS.DiffIDs, v1.Hash{Algorithm: l.diffID.Algorithm().String(), Hex: l.diffID.Encoded()})
		image.History = append(image.History, v1.History{CreatedBy: l.createdBy, Created: v1.Time{Time: Epoch}})
	}
	config, err := json.Marshal(image)
	if err != nil {
		return err
	}
	return d.AddImage(a.Name, config, blobs)
}

// files is the layer of the app's own files.
func (a App) files() Layer {
	return Layer{CreatedBy: "COPY " + a.Name + " /", Write: func(w *tar.Writer) error {
		root := path.Join("apps", a.Name)
		return fs.WalkDir(appFiles, root, func(p string, entry fs.DirEntry, err error) error {
			if err != nil || p == root {
				return err
			}
			h := tar.Header{Name: strings.TrimPrefix(p, root+"/")}
			if entry.IsDir() {
				h.Name += "/"
				return Add(w, h, "")
			}
			data, err := appFiles.ReadFile(p)
			if err != nil {
				return err
			}
			if strings.HasPrefix(string(data), "#!") {
				h.Mode = 0o755
			}
			return Add(w, h, string(data))
		})
	}}
}
