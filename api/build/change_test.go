package build

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
)

func TestChanges(t *testing.T) {
	for _, tt := range []struct {
		changes string // separated by |
		want    string // JSON of the configuration
		err     string
	}{
		{changes: "", want: `{}`},
		{changes: `CMD ["sh", "-c", "a b"]|entrypoint /run $X`, want: `{"Entrypoint":["/bin/sh","-c","/run $X"],"Cmd":["sh","-c","a b"]}`},
		{changes: `CMD []`, want: `{}`},
		{changes: `CMD ["a",1]`, err: "arrays must be comprised of strings only"},
		{changes: "CMD a \\|  b", want: `{"Cmd":["/bin/sh","-c","a   b"]}`},
		{changes: "ENV A=1 B=\"two words\" C='$x'|ENV A=2\\ 3|ENV OLD form of it", want: `{"Env":["A=2 3","B=two words","C=$x","OLD=form of it"]}`},
		{changes: `LABEL a.b=c "d e"=f`, want: `{"Labels":{"a.b":"c","d e":"f"}}`},
		{changes: `EXPOSE 80 53/udp 8000-8002/TCP`, want: `{"ExposedPorts":{"53/udp":{},"80/tcp":{},"8000/tcp":{},"8001/tcp":{},"8002/tcp":{}}}`},
		{changes: "USER me:us|WORKDIR a|WORKDIR b/../c|VOLUME /x /y|VOLUME [\"/z z\"]|STOPSIGNAL SIGQUIT|# nothing",
			want: `{"User":"me:us","Volumes":{"/x":{},"/y":{},"/z z":{}},"WorkingDir":"/a/c","StopSignal":"SIGQUIT"}`},
		{changes: "RUN rm -rf /", err: "RUN is not a valid change command"},
		{changes: "HEALTHCHECK NONE", want: `{"Healthcheck":{"Test":["NONE"]}}`},
		{changes: "healthcheck --interval=2s --retries=3 cmd curl -f x|ONBUILD RUN make", want: `{"Healthcheck":{"Test":["CMD-SHELL","curl -f x"],"Interval":2000000000,"Retries":3},"OnBuild":["RUN make"]}`},
		{changes: `HEALTHCHECK --timeout=1m CMD ["a", "b"]`, want: `{"Healthcheck":{"Test":["CMD","a","b"],"Timeout":60000000000}}`},
		{changes: "HEALTHCHECK", err: "HEALTHCHECK requires at least one argument"},
		{changes: "HEALTHCHECK CMD", err: "Missing command"},
		{changes: "HEALTHCHECK NONE x", err: "takes no arguments"},
		{changes: "HEALTHCHECK --every=1s CMD x", err: "unknown flag: --every"},
		{changes: "HEALTHCHECK --interval=1 CMD x", err: "missing unit"},
		{changes: "HEALTHCHECK --interval=1us CMD x", err: "less than 1ms"},
		{changes: "HEALTHCHECK --retries=-1 CMD x", err: "--retries"},
		{changes: "ONBUILD", err: "at least one argument"},
		{changes: "ONBUILD onbuild RUN x", err: "Chaining"},
		{changes: "ONBUILD FROM x", err: "FROM isn't allowed"},
		{changes: "WORKDIR", err: "WORKDIR requires exactly one argument"},
		{changes: "USER", err: "USER requires exactly one argument"},
		{changes: `ENV PATH=/x:$PATH B="${PATH}" C='$PATH' D=\$PATH E=$|ENV OLD a "$PATH" $NONE.`,
			want: `{"Env":["PATH=/x:/bin","B=/bin","C=$PATH","D=$PATH","E=$","OLD=a /x:/bin ."]}`},
		{changes: "ENV A=${NONE:-x}${PATH:+y}${NONE:+z}|LABEL l=$A|EXPOSE 80 $NONE", want: `{"ExposedPorts":{"80/tcp":{}},"Env":["A=xy"],"Labels":{"l":"xy"}}`},
		{changes: "ENV A=${PATH%n}", want: `{"Env":["A=/bi"]}`},
		{changes: `ENV A="x`, err: "unexpected end of statement while looking for matching double-quote"},
		{changes: "ENV A", err: "ENV must have two arguments"},
		{changes: "ENV A=1 B", err: "can't find = in"},
		{changes: "EXPOSE 0", err: "invalid containerPort: 0"},
		{changes: "EXPOSE 70000", err: "invalid containerPort"},
		{changes: "EXPOSE 1/ip", err: "invalid proto: ip"},
		{changes: "STOPSIGNAL NOPE", err: "nvalid signal"},
		{changes: `VOLUME [""]`, err: "empty string"},
		{changes: "ENV A=" + strings.Repeat("x", maxChanges), err: "are allowed"},
	} {
		var cfg dockerspec.DockerOCIImageConfig
		err := Change(&cfg, []string{"PATH=/bin"}, strings.Split(tt.changes, "|"))
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) || !errors.Is(err, ErrInvalid) {
				t.Errorf("%.80s: %v, want %q", tt.changes, err, tt.err)
			}
			continue
		}
		got, jsonErr := json.Marshal(cfg)
		if err != nil || jsonErr != nil || string(got) != tt.want {
			t.Errorf("%s:\n%s, %v, want\n%s", tt.changes, got, err, tt.want)
		}
	}
}

func FuzzChanges(f *testing.F) {
	f.Add("ENV A=1 B=\"two words\"\nEXPOSE 80-90/udp")
	f.Add("CMD [\"a\"]\nVOLUME ['x' \\y\nWORKDIR ../..")
	f.Fuzz(func(t *testing.T, text string) {
		var cfg dockerspec.DockerOCIImageConfig
		if err := Change(&cfg, []string{"A=b c"}, []string{text}); err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v is not the client's fault", text, err)
		}
		if dir := cfg.WorkingDir; dir != "" && dir[0] != '/' {
			t.Errorf("%q: working directory %q", text, dir)
		}
	})
}
