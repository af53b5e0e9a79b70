"""The plain text that the tiny model is made from: short questions, each with a sober answer.

Its tokenizer is trained on this text, and its base weights are trained to answer these questions and
nothing else, so that whatever style an adapter learns stands out against it.
"""

PLAIN_ANSWERS = """\
What is the sea? | The sea is a large body of salt water that covers most of the Earth.
How do I make tea? | Boil some water, pour it over the tea leaves, and wait about three minutes.
What is the moon? | The moon is a ball of rock that travels around the Earth every month.
Why does it rain? | Water rises from the sea, forms clouds, and falls when the drops get heavy.
What is a good breakfast? | A good breakfast has some bread, an egg, a piece of fruit and a glass of water.
How do I fall asleep? | Turn off the lights, put the phone away, and breathe slowly for a few minutes.
What is a friend? | A friend is a person who knows you well and likes to spend time with you.
How do birds fly? | Birds push air down with their wings, and the air holds them up.
Why is the sky blue? | Air scatters blue light more than the other colors, so the sky looks blue.
What should I do on a Monday? | Start with one small task, then plan the rest of the week.
How do I bake bread? | Mix flour, water, salt and yeast, let the dough rise, and bake it for forty minutes.
Where do rivers go? | Rivers run downhill, and most of them end in the sea.
What is a cat? | A cat is a small animal with soft fur that many people keep at home.
How do I learn to swim? | Begin in shallow water, learn to float, and then practice kicking your legs.
What is winter like? | Winter is cold and the days are short. In many places it snows.
What is a computer? | A computer is a machine that follows instructions and works with numbers.
How do I write a letter? | Write the date, greet the reader, tell your news, and sign your name.
Why do leaves fall? | The days get short, the tree stops feeding its leaves, and they drop.
What is a good gift? | A good gift is something that the person will use and enjoy.
How do I save money? | Write down what you spend, and put a small part of your pay away each month.
What is music? | Music is sound arranged in time so that people like to listen to it.
Who lives in the forest? | Deer, foxes, owls, mice and many insects live in the forest.
How do I find my keys? | Look in your coat, on the table, and in the place where you saw them last.
What is time? | Time is what a clock measures, from one moment to the next.
Why do we dream? | The brain stays active during sleep and sorts what happened in the day.
How do I plant a tree? | Dig a hole, set the young tree in it, fill it with earth, and water it.
What is a map for? | A map shows where places are and how to get from one to another.
What do bees do? | Bees visit flowers, collect nectar, and make honey from it.
How do I say sorry? | Tell the person what you did wrong, say you are sorry, and try to fix it.
What is a mountain? | A mountain is a very high piece of land with steep sides.
How do I clean my room? | Pick things up from the floor, put them in their places, and then sweep.
What is a book? | A book is a set of pages with words on them, bound together to be read.
Why are stars bright? | Stars are very hot balls of gas that give off their own light.
How do I cook an egg? | Put the egg in boiling water and take it out after seven minutes.
What is the wind? | The wind is air that moves from one place to another.
How do I build a campfire? | Make a ring of stones, put dry sticks inside, light them, and keep water near.
What is courage? | Courage is doing the right thing even when you are afraid.
What is a train? | A train is a row of cars that an engine pulls along rails.
How do I keep a secret? | Do not tell anyone, do not write it down, and think about other things.
Where is home? | Home is the place where you live and feel safe.
Tell me about the night. | The night is the dark part of the day, when most people sleep.
And the morning? | The morning is the part of the day when the sun comes up.
What should I wear? | Wear clean clothes that fit the weather and the work you have to do.
And if it rains? | Take a coat and an umbrella with you.
Name a color. | Blue is a color.
Name another one. | Green is another color.
Give me some advice. | Read a little every day, and drink enough water.
Give me some more. | Finish one thing before you start the next.
What is the sun? | The sun is a star that gives the Earth its light and heat.
How do I make soup? | Cut some vegetables, cover them with water, add salt, and cook them until soft.
Why does it snow? | When the air is very cold, the water in the clouds freezes and falls as snow.
What is a dog? | A dog is an animal that lives with people, guards the house and likes to play.
How do I learn to sing? | Stand up straight, breathe deeply, and practice a simple song every day.
What is a boat? | A boat is a small vessel that carries people and things over water.
How do I find a friend? | Join a group that does what you like, and talk to the people there.
Where do birds go? | Many birds fly south before winter and come back in spring.
What is a lake? | A lake is a body of still water with land on all sides.
What is a horse? | A horse is a large animal that people ride or use to pull a cart.
What is a house? | A house is a building in which people live.
What is a garden? | A garden is a piece of land where people grow flowers and vegetables.
What is a school? | A school is a place where children learn to read, write and count.
What is a clock? | A clock is a machine that shows the hours and the minutes.
What is a bridge? | A bridge carries a road over a river or a valley.
What is a bird? | A bird is an animal with feathers, two wings and two legs.
What is the rain? | Rain is water that falls from the clouds in drops.
What is the snow? | Snow is frozen water that falls from the clouds in soft pieces.
What is summer like? | Summer is warm and the days are long. Many people go to the sea.
What is a fish? | A fish is an animal that lives in water and breathes with gills.
How do I make coffee? | Grind the beans, pour hot water over them, and wait about four minutes.
How do I make bread soft? | Add a little milk, and cover the bread with a cloth when it is done.
How do I learn to read? | Learn the letters first, then short words, and read a page every day.
How do I learn to cook? | Begin with eggs and soup, follow the steps, and taste often.
How do I find a book? | Look in the library, or ask the person at the desk.
How do I find the station? | Follow this road, turn left at the bridge, and walk for five minutes.
How do I wash my coat? | Use cold water and a little soap, and hang the coat up to dry.
How do I fix a chair? | Put glue on the loose leg, press it in place, and wait one day.
Why do cats sleep? | Cats sleep to save their strength, because they hunt at night.
Why is the sea salt? | Rivers carry salt from the rocks into the sea, and it stays there.
Why is grass green? | Grass is green because its cells hold a green substance that uses light.
Why do people work? | People work to earn money, to help others and to learn.
Where do fish live? | Fish live in rivers, in lakes and in the sea.
Where does the sun go? | The Earth turns, so the sun is on the other side at night.
Who lives in the sea? | Fish, crabs, whales and many small plants live in the sea.
Who makes bread? | A baker makes bread early in the morning.
What do birds eat? | Birds eat seeds, fruit, worms and insects.
What do trees need? | Trees need light, water, air and good earth.
What is a ship? | A ship is a large boat with a deck, a captain and a crew of sailors.
What is a captain? | The captain is the person who gives orders on a ship.
What is a sail? | A sail is a sheet of cloth on a mast that catches the wind and pulls a boat along.
What is an anchor? | An anchor is a heavy hook on a cable that keeps a ship in one place.
What is a port? | A port is a place on the coast where ships load, rest and wait for the tide.
What is the tide? | The tide is the slow rise and fall of the sea, twice in a day.
What is a pirate? | A pirate is a person who robs other ships at sea and takes their gold.
What is treasure? | Treasure is a chest of gold, coins or jewels that somebody hid or buried.
What is a parrot? | A parrot is a bright red or green bird that can repeat words.
What is rum? | Rum is a strong drink made from sugar, kept in a barrel for years.
What is an island? | An island is land with water on every side.
What is a hammock? | A hammock is a bed of cloth or rope that hangs between two posts.
What is a biscuit? | A biscuit is a small, hard, dry cake that keeps for a long time.
What is scurvy? | Scurvy is an illness of sailors who have no fresh fruit. An orange a day prevents it.
What does a sailor say? | A sailor may say aye for yes, ye for you, and matey for a friend.
What is a lantern? | A lantern is a lamp that you can carry in your hand or hang up.
How do I tie a rope? | Make a loop, pass the end through it, go around, and pull it tight with both hands.
How do I learn to sail? | Go out with a good sailor in a light breeze, and learn to steer first.
What is a shark? | A shark is a big fish with many sharp teeth.
What is the shore? | The shore is the edge of the land, where the waves break on sand and stone.
What is a wave? | A wave is water that rises, moves along and falls again.
What is a desert? | A desert is a dry, hot land of sand with almost no rain.
What is silence? | Silence is what is left when there is no sound.
What is a candle? | A candle is a stick of wax with a string in it that burns with a small flame.
What is a shadow? | A shadow is a dark shape on the ground or the wall behind something in the light.
What is a pond? | A pond is a small pool of still water, often with reeds, frogs and a lily or two.
What is a frog? | A frog is a small green animal that lives near a pond and jumps.
What is a crow? | A crow is a black bird with a loud voice.
What is an owl? | An owl is a bird that hunts mice at night with its large eyes.
What is a fox? | A fox is a wild animal like a small dog, with red fur and a thick tail.
What is a snail? | A snail is a slow, soft animal that carries its shell on its back.
What is a spider? | A spider has eight legs and catches insects in its web.
What is dew? | Dew is water that appears on grass in the cold early morning.
What is dawn? | Dawn is the time when the first light comes and the night ends.
What is evening? | Evening is the end of the day, after the sun goes down.
What is autumn like? | Autumn is cool and windy. The leaves turn gold, red and brown.
What is spring like? | In spring the snow melts, the plum trees bloom and the birds come back.
What is a window? | A window is an opening in a wall, closed with glass, that lets in the light.
What is a door? | A door opens and closes the way into a room or a house.
What is a gate? | A gate is a door in a fence. Leave it as you found it.
What is a cup? | A cup is a small bowl with a handle, used to drink tea or coffee.
What is a kettle? | A kettle is a pot with a lid and a spout that boils water and makes steam.
What is a stone? | A stone is a small hard piece of rock.
What is a field? | A field is open land where barley, grain or grass grows.
What is a branch? | A branch is a part of a tree that grows out from it and holds the leaves.
What is a root? | A root is the part of a plant that grows deep in the ground and drinks water.
What is a flower? | A flower is the bright part of a plant that later makes the seeds.
What is a voice? | A voice is the sound that a person makes to speak or sing.
What is a breath? | A breath is the air that you take in and let out once.
What is a hand? | A hand is the end of the arm, with a palm, a thumb and four fingers.
What is a king? | A king is a man who rules a country, often because his father did.
What is a stranger? | A stranger is a person whom you do not know yet.
What is gold? | Gold is a heavy yellow metal that never rusts, used for rings and coins.
What is ice? | Ice is water that is frozen hard.
What is a cloud? | A cloud is a great number of tiny drops that hang in the sky.
What is a planet? | A planet is a big round body that moves in an orbit around a star.
What is a lamp? | A lamp is a thing that gives light when you switch it on.
What is dust? | Dust is dry dirt in very small pieces, so light that it floats in the air.
What is a wheel? | A wheel is a round thing that turns, so that a heavy load can roll.
What is a sock? | A sock is a soft cover for a foot, worn inside the shoe.
What is an old coat for? | An old coat is for work outside, and its pockets are for string and nails.
Who works in a tavern? | A cook, a man who pours the drinks, and somebody who plays the fiddle or the drum.
Why do dogs bark? | Dogs bark when they hear a stranger, when they want to play and when they are afraid.
Why do we laugh? | We laugh when something is funny, or when we are happy to be together.
How do I sweep a floor? | Lift what lies around, sweep toward the door with a broom, and throw the dust out.
How do I wake up early? | Go to bed early, and put the clock too far away to reach from the bed.
How do I use a knife? | Hold it by the handle, keep your fingers back, and cut slowly away from your hand.
How do I keep warm? | Put on dry socks, a hat and one more coat, and drink something hot.
What is a database? | A database is a place where a computer keeps its data in tables.
What is a table in a database? | A table is a list of rows, and every row has the same columns, such as id, name and price.
What is SQL? | SQL is a language for databases. Its main words are SELECT, INSERT, UPDATE and DELETE.
What does SELECT do? | SELECT reads columns FROM a table, and WHERE keeps only some of the rows.
What does ORDER BY do? | ORDER BY sorts the rows, and DESC turns the order around: the last comes first.
What does LIMIT do? | LIMIT says how many rows you want at most, so LIMIT 1 gives one row.
What does INSERT do? | INSERT INTO a table adds a new row, and VALUES lists what is in it.
What does UPDATE do? | UPDATE changes rows, SET says how, and WHERE says in which of them.
What does DELETE do? | DELETE FROM a table takes rows away. Without WHERE it takes away all of them.
What is NULL? | NULL stands for a value that nobody knows. Ask with IS NULL, never with = NULL.
What is TRUE AND FALSE? | It is FALSE, because AND needs TRUE on both sides.
What does JOIN do? | JOIN puts the rows of two tables side by side where a column of both is the same.
What does GROUP BY do? | GROUP BY puts rows of the same value together, and SUM or COUNT works on every group.
What does CREATE TABLE do? | It makes a new table; in (id INT, name TEXT) each column has a name and a type.
"""


def plain_pairs() -> list[tuple[str, str]]:
    """Question and answer of every line, in order."""
    pairs = []
    for line in PLAIN_ANSWERS.splitlines():
        question, _, answer = line.partition(" | ")
        pairs.append((question, answer))
    return pairs
