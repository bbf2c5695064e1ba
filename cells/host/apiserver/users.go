// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cilium/cilium/pkg/fswatcher"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/spf13/pflag"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/yaml"

	"github.com/waggle-mesh/waggle/cells/etcd"
	"github.com/waggle-mesh/waggle/clustermesh/wire"
)

// usersCell keeps the etcd's users for remote clusters as a file says: those it names
// have the role that it gives them and no other, those it no longer names are gone.
var usersCell = cell.Module(
	"clustermesh-users",
	"Users of the etcd for remote clusters",

	cell.Config(defaultUsersConfig),
	cell.Invoke(registerUsers),
)

// usersConfig are upstream's flags.
type usersConfig struct {
	Enabled bool   `mapstructure:"cluster-users-enabled"`
	Path    string `mapstructure:"cluster-users-config-path"`
}

var defaultUsersConfig = usersConfig{Path: "/var/lib/cilium/etcd-config/users.yaml"}

// Flags registers the flags.
func (def usersConfig) Flags(flags *pflag.FlagSet) {
	flags.Bool("cluster-users-enabled", def.Enabled, "Enable the management of etcd users for remote clusters")
	flags.String("cluster-users-config-path", def.Path, "The path of the config file with the list of remote cluster users")
}

const (
	// remoteRole and remoteUserPrefix are those of upstream's chart and etcdinit. A user of
	// such a name with no other role was made by an earlier process.
	remoteRole       = "remote"
	remoteUserPrefix = "remote-"
	// authTimeout bounds one pass over all users, which are some hundreds.
	authTimeout = time.Minute
)

// users is the job that keeps them.
type users struct {
	log     *slog.Logger
	config  usersConfig
	cluster wire.ClusterInfo
	client  *etcd.Client
	// known are the users that this process has found or made as the file says.
	known map[string]bool
}

func registerUsers(log *slog.Logger, config usersConfig, cluster wire.ClusterInfo, client *etcd.Client, jobs job.Group) {
	if !config.Enabled {
		return
	}
	u := &users{log: log, config: config, cluster: cluster, client: client, known: map[string]bool{}}
	jobs.Add(job.OneShot("etcd-users", u.run))
}

// run keeps the users whenever the file or the connection changes, and until they are as
// they should be.
func (u *users) run(ctx context.Context, health cell.Health) error {
	watcher, err := fswatcher.New(u.log, []string{u.config.Path})
	if err != nil {
		return fmt.Errorf("watching %q: %w", u.config.Path, err)
	}
	defer watcher.Close()
	backoff := newUsersBackoff()
	for failing := ""; ; {
		_, reconnected := u.client.Generation()
		count, err := u.keep(ctx)
		var again <-chan time.Time
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			failing, backoff = "", newUsersBackoff()
			health.OK(fmt.Sprintf("%d users", count))
		default:
			if text := err.Error(); text != failing { // each failure once
				failing = text
				u.log.Warn("Keeping the users of remote clusters failed, trying again", "path", u.config.Path, "error", err)
			}
			health.Degraded("The etcd's users for remote clusters are not as configured", err)
			again = time.After(backoff.Step())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-watcher.Events:
		case err := <-watcher.Errors:
			u.log.Warn("Watching the users of remote clusters failed", "path", u.config.Path, "error", err)
		case <-reconnected: // it may be another etcd
		case <-again:
		}
	}
}

func newUsersBackoff() wait.Backoff {
	return wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 10, Cap: time.Minute}
}

// usersFile is the configuration file.
type usersFile struct {
	Users []struct {
		Name string `json:"name"`
		Role string `json:"role"`
	} `json:"users"`
}

// wantedUsers are what a file says.
type wantedUsers struct {
	// roles are those of each user.
	roles map[string]string
	// unclear are users whose entries are at fault: they stay as they are. nameless says
	// that one entry at fault doesn't say whose it is, so that nobody is to go.
	unclear  map[string]bool
	nameless bool
}

// read gives what the file says. The error names the entries at fault; wanted is nil if
// nothing of the file can be used.
func (u *users) read() (wanted *wantedUsers, err error) {
	data, err := os.ReadFile(u.config.Path)
	if err != nil {
		return nil, err
	}
	var file usersFile
	var keys map[string]any
	if err := errors.Join(yaml.Unmarshal(data, &file), yaml.Unmarshal(data, &keys)); err != nil {
		return nil, fmt.Errorf("parsing %q: %w", u.config.Path, err)
	}
	// The chart of a cluster without others has the key and nothing below it. Without the
	// key it is another file, or a part of it.
	if _, ok := keys["users"]; !ok {
		return nil, fmt.Errorf("%q has no list \"users\"", u.config.Path)
	}
	wanted = &wantedUsers{roles: make(map[string]string, len(file.Users)), unclear: map[string]bool{}}
	var errs []error
	for i, user := range file.Users {
		switch role, twice := wanted.roles[user.Name]; {
		case user.Name == "":
			wanted.nameless = true
			errs = append(errs, fmt.Errorf("entry %d of %q has no name", i+1, u.config.Path))
		case u.reserved(user.Name):
			errs = append(errs, fmt.Errorf("user %q of %q is one of this cluster's own", user.Name, u.config.Path))
		case user.Role == "":
			wanted.unclear[user.Name] = true
			errs = append(errs, fmt.Errorf("user %q of %q has no role", user.Name, u.config.Path))
		case twice && role != user.Role:
			wanted.unclear[user.Name] = true
			errs = append(errs, fmt.Errorf("user %q of %q has the roles %q and %q", user.Name, u.config.Path, role, user.Role))
		default:
			wanted.roles[user.Name] = user.Role
		}
	}
	for name := range wanted.unclear {
		delete(wanted.roles, name)
	}
	return wanted, errors.Join(errs...)
}

// reserved are the users by whom the cluster itself has its etcd.
func (u *users) reserved(name string) bool {
	return name == "root" || name == "admin-"+u.cluster.Name || name == "local-"+u.cluster.Name
}

// keep makes one pass. Who is to go goes first; one user that can't be dealt with is no
// reason to leave the others.
func (u *users) keep(ctx context.Context) (count int, err error) {
	wanted, err := u.read()
	if wanted == nil {
		return 0, err
	}
	errs := []error{err}
	ctx, cancel := context.WithTimeout(ctx, authTimeout)
	defer cancel()
	listed, err := u.client.Etcd().UserList(ctx)
	if err != nil {
		return 0, fmt.Errorf("listing the etcd's users: %w", err)
	}
	there := make(map[string]bool, len(listed.Users))
	for _, name := range listed.Users {
		there[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(there)) {
		if _, ok := wanted.roles[name]; !ok && !wanted.unclear[name] && !wanted.nameless {
			errs = append(errs, u.remove(ctx, name))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(wanted.roles)) {
		errs = append(errs, u.ensure(ctx, name, wanted.roles[name], there[name]))
	}
	return len(wanted.roles), errors.Join(errs...)
}

// remove deletes a user that the file doesn't name, if it is one that it did.
func (u *users) remove(ctx context.Context, name string) error {
	if !u.known[name] {
		if !strings.HasPrefix(name, remoteUserPrefix) {
			return nil
		}
		roles, err := u.roles(ctx, name)
		if err != nil || slices.ContainsFunc(roles, func(role string) bool { return role != remoteRole }) {
			return err
		}
	}
	if _, err := u.client.Etcd().UserDelete(ctx, name); err != nil && !errors.Is(err, rpctypes.ErrUserNotFound) {
		return fmt.Errorf("deleting user %q: %w", name, err)
	}
	delete(u.known, name)
	u.log.Info("Deleted the user of a remote cluster", "user", name)
	return nil
}

// ensure makes a user that is missing, and gives it the one role that it is to have. One
// that can't be given leaves those that it had.
func (u *users) ensure(ctx context.Context, name, role string, there bool) error {
	auth := u.client.Etcd()
	if !there {
		// Clients are known by their certificates.
		_, err := auth.UserAddWithOptions(ctx, name, "", &clientv3.UserAddOptions{NoPassword: true})
		if err != nil && !errors.Is(err, rpctypes.ErrUserAlreadyExist) {
			return fmt.Errorf("adding user %q: %w", name, err)
		}
	}
	before := u.known[name]
	u.known[name] = true
	has, err := u.roles(ctx, name)
	if err != nil {
		return err
	}
	if !slices.Contains(has, role) {
		if _, err := auth.UserGrantRole(ctx, name, role); err != nil {
			return fmt.Errorf("granting role %q to user %q: %w", role, name, err)
		}
	}
	// Only now: a cluster isn't cut off for the sake of a role that there isn't.
	for _, old := range has {
		if old == role {
			continue
		}
		if _, err := auth.UserRevokeRole(ctx, name, old); err != nil && !errors.Is(err, rpctypes.ErrRoleNotGranted) {
			return fmt.Errorf("revoking role %q of user %q: %w", old, name, err)
		}
	}
	if !before || !slices.Equal(has, []string{role}) {
		u.log.Info("A remote cluster has its user", "user", name, "role", role, "was", cmp.Or(strings.Join(has, ","), "-"))
	}
	return nil
}

func (u *users) roles(ctx context.Context, name string) ([]string, error) {
	user, err := u.client.Etcd().UserGet(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("reading user %q: %w", name, err)
	}
	return user.Roles, nil
}
