package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"vic/api/certificate"
	"vic/containervm/vch"
)

func createCommand() *cobra.Command {
	var t targetFlags
	var f planFlags
	var spec vch.Spec
	var o createFlags
	cmd := &cobra.Command{
		Use:   "create --target HOST --user NAME --image-store DATASTORE --bridge-network PORTGROUP",
		Short: "Install a VCH",
		Long: `Install a VCH: a resource pool, a folder of VMs, and the appliance, a VM that serves the Docker API. What stands against
it is told all at once, before anything is made. Without --tls-server-cert, an authority is made, and certificates of the
server and of a client, in --tls-cert-path; an authority that is there stays.

If something fails, what was made is removed again. If vic-machine is killed, the same command goes on.`,
		Example: `  vic-machine create --target vcenter.example.org/DC1 --user administrator@vsphere.local --thumbprint AB:CD:… \
    --name build --compute-resource cluster1 --image-store ssd1 --bridge-network vic-bridge --tls-cname build.example.org`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.withSite(cmd, func(site *vch.Site) error { return create(cmd, site, &t, &f, &spec, &o) })
		},
	}
	t.add(cmd)
	specFlags(cmd.Flags(), &spec)
	o.add(cmd)
	f.add(cmd, true)
	jsonFlag(cmd)
	return cmd
}

// createFlags are those that are no part of a Spec.
type createFlags struct {
	certPath        string
	iso             string
	opsPasswordFile string
	timeout         time.Duration
}

func (o *createFlags) add(cmd *cobra.Command) {
	o.addChanging(cmd)
	o.addISO(cmd)
	o.addOps(cmd)
}

// addChanging adds those of all commands after which the appliance starts.
func (o *createFlags) addChanging(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.certPath, "tls-cert-path", "", "`folder` of the certificates that are made, and of the file of docker's environment; default the VCH's name")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 5*time.Minute, "how long to wait for the appliance")
}

func (o *createFlags) addISO(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.iso, "appliance-iso", "", "`file` that the appliance boots; default vic-appliance.iso beside this program")
}

func (o *createFlags) addOps(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.opsPasswordFile, "ops-password-file", "", "`file` whose first line is the password of --ops-user; default $VIC_MACHINE_OPS_PASSWORD, or it is asked for")
}

// clientDays is how long certificates count that are made.
const clientDays = 397

// create makes a VCH.
func create(cmd *cobra.Command, site *vch.Site, t *targetFlags, f *planFlags, spec *vch.Spec, o *createFlags) error {
	if spec.TLS == "" {
		spec.TLS = vch.MutualTLS
	}
	spec.ComputeResource = computeResource(spec.ComputeResource)
	if o.certPath == "" {
		o.certPath = spec.Name
	}
	options, err := createOptions(cmd, t, spec, o)
	if err != nil {
		return err
	}
	iso, err := openISO(o.iso)
	if err != nil {
		return err
	}
	defer iso.Close() // read only
	fi, err := iso.Stat()
	if err != nil {
		return err
	}
	options.ISO = vch.ISO{ReaderAt: iso, Size: fi.Size()}
	plan, err := site.Create(cmd.Context(), options)
	if err != nil {
		return err
	}
	done, err := f.run(cmd, plan)
	if err != nil || !done {
		return err
	}
	v, err := site.Find(cmd.Context(), spec.Name)
	if err != nil {
		return err
	}
	return tell(cmd, v, o.certPath)
}

// createOptions are those of the flags, but for the ISO.
func createOptions(cmd *cobra.Command, t *targetFlags, spec *vch.Spec, o *createFlags) (vch.CreateOptions, error) {
	options := vch.CreateOptions{Spec: *spec, Version: version, Timeout: o.timeout}
	if err := t.trust(cmd.Context()); err != nil {
		return options, err
	}
	options.Access = vch.Access{Target: t.target, Thumbprint: t.thumbprint, CAFile: t.caFile, User: t.user, Password: t.password}
	if spec.OpsUser != "" {
		var err error
		if options.Access.OpsPassword, err = password(cmd, "VIC_MACHINE_OPS_PASSWORD", "", o.opsPasswordFile, "Password of "+spec.OpsUser); err != nil {
			return options, err
		}
	}
	if err := readTLS(spec, &options, o.certPath); err != nil {
		return options, err
	}
	var err error
	options.RegistryCAs, err = readCAs(spec.RegistryCAs)
	return options, err
}

// readTLS reads the certificates that were brought, or has them made.
func readTLS(spec *vch.Spec, options *vch.CreateOptions, dir string) error {
	brought := []struct {
		file, option string
		to           *[]byte
	}{{spec.TLSCert, "tls-server-cert", &options.TLS.Cert}, {spec.TLSKey, "tls-server-key", &options.TLS.Key}, {spec.TLSCA, "tls-ca", &options.TLS.CA}}
	any := false
	for _, b := range brought {
		any = any || b.file != ""
	}
	if !any && spec.TLS != vch.NoTLS {
		options.MakeTLSText = "make certificates in " + dir
		options.MakeTLS = func() (vch.TLS, error) { return makeTLS(spec, dir) }
		return nil
	}
	for _, b := range brought {
		if any && b.file == "" && (b.option != "tls-ca" || spec.TLS == vch.MutualTLS) {
			return usageErrorf("--%s is missing: certificates are brought all together, or made", b.option)
		}
	}
	for _, b := range brought {
		if b.file == "" {
			continue
		}
		var err error
		if *b.to, err = os.ReadFile(b.file); err != nil {
			return fmt.Errorf("--%s: %w", b.option, err)
		}
	}
	return nil
}

// readCAs reads authorities of registries.
func readCAs(files []string) (all [][]byte, err error) {
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("--registry-ca: %w", err)
		}
		all = append(all, text)
	}
	return all, nil
}

// makeTLS makes certificates.
func makeTLS(spec *vch.Spec, dir string) (t vch.TLS, err error) {
	names := spec.ServerNames()
	if len(names) == 0 {
		names = []string{spec.Name} // clients do not look
	}
	if err := certificate.Make(dir, names, time.Now(), clientDays); err != nil {
		return t, err
	}
	for _, x := range []struct {
		to   *[]byte
		file string
	}{{&t.CA, "server/ca.pem"}, {&t.Cert, "server/cert.pem"}, {&t.Key, "server/key.pem"}, {&t.ClientCert, "client/cert.pem"}, {&t.ClientKey, "client/key.pem"}} {
		if *x.to, err = os.ReadFile(filepath.Join(dir, filepath.FromSlash(x.file))); err != nil {
			return t, err
		}
	}
	return t, nil
}

// openISO opens what the appliance boots.
func openISO(file string) (*os.File, error) {
	if file == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("where is the appliance's ISO? name it with --appliance-iso: %w", err)
		}
		file = filepath.Join(filepath.Dir(self), "vic-appliance.iso")
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("open the appliance's ISO, --appliance-iso: %w", err)
	}
	return f, nil
}
