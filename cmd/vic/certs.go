package main

import (
	"time"

	"github.com/spf13/cobra"

	"vic/api/certificate"
)

func certsCommand() *cobra.Command {
	var names []string
	var days int
	cmd := &cobra.Command{
		Use:   "certs DIR --name NAME",
		Short: "Make the certificates for mutual TLS: an authority, a server's, a client's",
		Long: `Make what vic serve --tlsverify and docker clients show each other, in DIR:

  ca/{cert,key}.pem         the authority. Keep its key away from the others: who has it can make clients
  server/{ca,cert,key}.pem  for vic serve
  client/{ca,cert,key}.pem  for clients: their DOCKER_CERT_PATH

An authority that is there already stays, so the same command makes new certificates before the old ones
expire. vic serve reads its own again on SIGHUP.`,
		Example: `  vic certs /etc/vic/certs --name vch.example.org --name 192.0.2.7
  DOCKER_CERT_PATH=/etc/vic/certs/server vic serve --store /var/lib/vic --tlsverify -H tcp://0.0.0.0:2376
  DOCKER_CERT_PATH=/etc/vic/certs/client DOCKER_TLS_VERIFY=1 docker -H tcp://vch.example.org:2376 info`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(names) == 0 {
				return usageErrorf("give each name and address that clients reach the server by with --name")
			}
			if days < 1 || days > certificate.AuthorityDays {
				return usageErrorf("--days %d: use 1 to %d", days, certificate.AuthorityDays)
			}
			return certificate.Make(args[0], names, time.Now(), days)
		},
	}
	fl := cmd.Flags()
	fl.StringArrayVar(&names, "name", nil, "`NAME` or IP address that clients reach the server by (may be given several times)")
	fl.IntVar(&days, "days", 397, "how `many` days the server's and the client's certificates count")
	return cmd
}
